"""The command's face: help, completion, and what it loads before it knows what to do."""

import inspect
import os
import subprocess
import sys
from importlib import metadata
from typing import get_args

import pytest
from typer.models import OptionInfo

from dragoman.cli import options, serve
from dragoman.cli.app import app
from dragoman.cli.main import main
from dragoman.model.recipe import builtin_recipes
from dragoman.server.config import ServerSettings

COMMANDS = (
    "train",
    "back-translate",
    "report",
    "evaluate",
    "export",
    "verify",
    "serve",
    "config",
    "token",
    "translate",
    "translate-files",
    "generate",
    "generate-files",
    "score",
    "models",
    "bench",
    "top",
    "demo",
)


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {command} " in shown for command in COMMANDS)
    commands = {
        command.callback.__name__.replace("_", "-") for command in app.registered_commands if command.callback
    }
    assert commands | {group.name for group in app.registered_groups} == set(COMMANDS)


def test_the_command_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "Usage: dragoman" in captured.out
    assert captured.err == ""


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dragoman {metadata.version('dragoman')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_its_own_parser_accepts(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "-h"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: dragoman {command}" in shown
    lines = [line.strip() for line in shown.partition("Examples")[2].splitlines()]
    examples = [line for line in lines if line.startswith("dragoman")]
    assert examples
    for example in examples:
        words = example.partition(" < ")[0].split()
        assert words[1] == command
        for word in words:
            if word.startswith("--"):
                assert f" {word} " in shown


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("host", ServerSettings().server.host),
        ("port", ServerSettings().server.port),
        ("metrics_port", ServerSettings().server.metrics_port),
        ("models", ServerSettings().models.directory),
    ],
)
def test_the_defaults_that_serve_shows_are_the_servers(parameter: str, value: object) -> None:
    annotation = inspect.signature(serve.serve).parameters[parameter].annotation
    [option] = [info for info in get_args(annotation) if isinstance(info, OptionInfo)]
    assert option.show_default == str(value)


def test_nothing_heavy_is_loaded_before_a_command_needs_it() -> None:
    heavy = {
        "asyncio",
        "grpc",
        "matplotlib",
        "numpy",
        "onnxruntime",
        "pydantic",
        "rich",
        "tokenizers",
        "torch",
        "urllib.request",
    }
    program = f"import sys, dragoman.cli.app; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert loaded.stdout.split() == []


def test_recipes_complete_without_loading_them() -> None:
    assert tuple(options.recipe_names()) == builtin_recipes()
    assert options.complete_recipe("da") == ["dates"]
    assert options.complete_recipe("zz") == []


def test_whoever_asks_for_text_may_say_how_it_is_decoded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    of_sources = {"--alignment", "--target-prefix", "--coverage-penalty"}
    shared = {
        *("--beam-size", "--num-hypotheses", "--length-penalty", "--patience", "--repetition-penalty"),
        *("--no-repeat-ngram-size", "--suppress", "--alternatives", "--temperature", "--stop", "--json"),
    }
    for command, expected in (("translate", shared | of_sources), ("generate", shared)):
        assert main([command, "-h"]) == 0
        shown = set(capsys.readouterr().out.split())
        assert {option for option in shared | of_sources if option in shown} == expected
        assert {"Decoding", "Beam", "Constraints", "Output"} <= shown


def test_every_command_that_calls_a_model_completes_its_name() -> None:
    for command in ("translate", "generate", "score", "bench", "evaluate"):
        [registered] = [
            each.callback
            for each in app.registered_commands
            if each.callback and each.callback.__name__ == command
        ]
        annotation = inspect.signature(registered).parameters["model"].annotation
        [option] = [info for info in get_args(annotation) if isinstance(info, OptionInfo)]
        assert option.autocompletion is options.complete_model


def test_completing_a_model_without_a_server_is_quiet() -> None:
    class Context:
        params = {"target": "not a target"}  # noqa: RUF012

    assert options.complete_model(Context(), "") == []  # type: ignore[arg-type]
