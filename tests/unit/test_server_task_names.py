"""What a task does is written down as facts of it: its name decides nothing elsewhere in the server."""

import ast
from pathlib import Path
from typing import get_args

import dragoman.server
from dragoman.server.bundle import graph_names
from dragoman.server.bundle.tasks import FACTS, Task
from dragoman.server.fronts.grpc.dragoman_v1.protocol import DECODING_METHODS
from dragoman.server.fronts.grpc.open_inference.requests import INPUTS

SERVER = Path(dragoman.server.__file__).parent
PROTOCOLS = ("fronts/grpc/dragoman_v1", "fronts/grpc/open_inference")
MAY_NAME_TASKS = {"bundle/tasks.py", "bundle/graph_names.py"}


def names_a_task(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.Constant) and node.value in get_args(Task) for node in ast.walk(tree))


def test_only_tables_and_protocols_name_tasks() -> None:
    named = {
        str(path.relative_to(SERVER))
        for path in SERVER.rglob("*.py")
        if names_a_task(path) and not any(path.is_relative_to(SERVER / protocol) for protocol in PROTOCOLS)
    }
    assert named == MAY_NAME_TASKS


def test_every_table_has_every_task() -> None:
    tasks = set(get_args(Task))
    for table in (
        FACTS,
        graph_names.GRAPHS,
        graph_names.FIRST_GRAPHS,
        graph_names.MEASURED_GRAPHS,
        DECODING_METHODS,
        INPUTS,
    ):
        assert set(table) == tasks


def test_graphs_follow_the_facts() -> None:
    for task, facts in FACTS.items():
        assert ("encode" in graph_names.FIRST_GRAPHS[task]) == facts.has_source
        assert ("align" in graph_names.GRAPHS[task]) == facts.has_source
