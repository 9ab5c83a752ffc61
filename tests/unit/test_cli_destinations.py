"""One rule for every command that writes: into something new, or over a thing of its kind when told to.

The rule is `dragoman.common.files.Destination`. Each command is tried on what it must not touch.
"""

import dataclasses
import inspect
import re
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.trees import tree

from dragoman.cli.app import app
from dragoman.cli.demo import _free_run_folder
from dragoman.cli.main import main
from dragoman.model.recipe import load_recipe
from dragoman.model.run import Run, save_run
from dragoman.model.tokenizer import train_tokenizer
from dragoman.model.transformer import build_model

GENERATION = Path(__file__).parents[1] / "fixtures" / "bundles" / "count" / "2"
BUNDLE = Path(__file__).parents[1] / "fixtures" / "bundles" / "spell" / "2"

WRITES = {
    ("demo", "folder"),
    ("train", "out"),
    ("export", "out"),
    ("back_translate", "out"),
    ("report", "run"),
    ("translate_files", "out"),
    ("generate_files", "out"),
}
READS = {
    ("train", "recipe"),
    ("train", "data"),
    ("train", "init"),
    ("export", "run"),
    ("export", "data"),
    ("verify", "bundle"),
    ("verify", "run"),
    ("verify", "data"),
    ("evaluate", "subject"),
    ("evaluate", "data"),
    ("back_translate", "bundle"),
    ("back_translate", "text"),
    ("back_translate", "data"),
    ("serve", "models"),
    ("serve", "config"),
    ("translate", "bundle"),
    ("translate", "inputs"),
    ("generate", "bundle"),
    ("score", "bundle"),
    ("score", "inputs"),
    ("bench", "inputs"),
    ("translate_files", "bundle"),
    ("generate_files", "bundle"),
    ("serve", "tls_cert"),
    ("serve", "tls_key"),
    ("serve", "tls_client_ca"),
    ("serve", "tokens_file"),
}
_CALLING = ("evaluate", "translate", "generate", "score", "bench", "top")
READS |= {(command, name) for command in _CALLING for name in ("tls_ca", "tls_cert", "tls_key", "token_file")}
_PLACES = {"FILE", "DIR", "FOLDER", "PATH", "RUN", "BUNDLE", "BUNDLE_OR_HOST", "RECIPE"}  # metavars
_WRITING = re.compile(r"out|output|to|save|write|json|plot|log|file|folder|report", re.IGNORECASE)


def places() -> Iterator[tuple[str, str]]:
    """Each argument and option, of every command, that names a place on the disk or sounds like one."""
    for command in app.registered_commands:
        assert command.callback is not None
        for name, parameter in inspect.signature(command.callback).parameters.items():
            kind, info = typing.get_args(parameter.annotation)
            is_flag = kind is bool
            if info.metavar in _PLACES or "Path" in str(kind) or (_WRITING.fullmatch(name) and not is_flag):
                yield command.callback.__name__, name


def test_every_option_that_names_a_place_is_known_to_read_or_to_write() -> None:
    found = set(places())
    assert found == WRITES | READS, (
        "add a new one to READS, or to WRITES with a Writer below, after it goes through common.files.Destination"
    )
    assert {*(writer.command for writer in WRITERS), "report"} == {command for command, _ in WRITES}


@dataclasses.dataclass(frozen=True)
class Writer:
    """How to have a command write to a place.

    Attributes:
        command: its function's name.
        arguments: for the folder of inputs and the place.
        own: puts a thing of its kind at the place; None where a command never replaces one.
        reads: what in the folder of inputs it reads, which is of another kind or may be of its own.
        force: what tells it to replace.
    """

    command: str
    arguments: Callable[[Path, Path], list[str]]
    own: Callable[[Path, Path], object] | None = None
    reads: tuple[str, ...] = ()
    force: tuple[str, ...] = ()


def put_pairs(inputs: Path, place: Path) -> None:
    shutil.copyfile(inputs / "pairs.jsonl", place)


def put_run(inputs: Path, place: Path) -> None:
    shutil.copytree(inputs / "run", place)


WRITERS = (
    Writer(
        "export",
        lambda inputs, place: ["export", str(inputs / "run"), "--out", str(place)],
        own=lambda _, place: shutil.copytree(BUNDLE, place),
        reads=("run", "run/checkpoints", "run/1"),
        force=("--force",),
    ),
    Writer(
        "train",
        lambda inputs, place: ["train", "dates", "--out", str(place), "--init", str(inputs / "run")],
        own=put_run,
        reads=("run", "run/1", ""),
        force=("--restart",),
    ),
    Writer(
        "back_translate",
        lambda inputs, place: [
            *("back-translate", str(inputs / "bundle"), "--text", str(inputs / "pairs.jsonl")),
            *("--out", str(place)),
        ],
        own=put_pairs,
        reads=("pairs.jsonl", "bundle", "bundle/tokenizer.json", "bundle/new.jsonl", "hard", "soft"),
        force=("--force",),
    ),
    Writer("demo", lambda _, place: ["demo", "--in", str(place)]),
    Writer(
        "translate_files",
        lambda inputs, place: [
            *("translate-files", str(inputs / "pairs.jsonl"), "--input-column", "source"),
            *("--bundle", str(inputs / "bundle"), "--out", str(place)),
        ],
        reads=("", "pairs.jsonl", "bundle"),
    ),
    Writer(
        "generate_files",
        lambda inputs, place: [
            *("generate-files", str(inputs / "pairs.jsonl"), "--input-column", "source"),
            *("--bundle", str(GENERATION), "--out", str(place)),
        ],
        reads=("", "pairs.jsonl"),
    ),
)
"""`report` has the test at the end: it writes beside what it reads."""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    shutil.copytree(BUNDLE, folder / "bundle")
    (folder / "pairs.jsonl").write_text('{"source": "three four", "target": "34"}\n')
    (folder / "hard").hardlink_to(folder / "pairs.jsonl")
    (folder / "soft").symlink_to("pairs.jsonl")
    recipe = load_recipe("dates", ["model.width=8", "model.num_heads=1"])
    tokenizer = train_tokenizer(recipe.tokenizer, ["abc", "123"], recipe.task)
    model = build_model(recipe.dimensions(tokenizer.get_vocab_size())).eval()
    save_run(Run(folder / "run", model, tokenizer, recipe, step=7, metrics={}))
    (folder / "run" / "checkpoints").mkdir()
    return folder


def put_file(place: Path) -> None:
    place.write_text("years of work")


def put_folder(place: Path) -> None:
    for name in ("thesis", "runs/dates/thesis", "models/dates/thesis"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("years of work")


def put_link_to_file(place: Path) -> None:
    put_file(place.with_name("elsewhere"))
    place.symlink_to("elsewhere")


def put_link_to_folder(place: Path) -> None:
    put_folder(place.with_name("elsewhere"))
    place.symlink_to("elsewhere")


def refuses(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line by which the command refuses, which leaves the folder as it was."""
    before = tree(folder)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    assert tree(folder) == before
    return line


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.command)
@pytest.mark.parametrize("put", [put_file, put_folder, put_link_to_file, put_link_to_folder])
def test_what_is_of_another_kind_is_never_touched(
    writer: Writer,
    put: Callable[[Path], None],
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "model" / "1"
    place.parent.mkdir()
    put(place)
    line = refuses([*writer.arguments(inputs, place), *writer.force], tmp_path, capsys)
    assert str(place) in line or "elsewhere" in line


@pytest.mark.parametrize(
    "writer", [writer for writer in WRITERS if writer.own], ids=lambda writer: writer.command
)
def test_what_is_of_its_kind_is_replaced_only_when_told_to(
    writer: Writer, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "model" / "1"
    place.parent.mkdir()
    assert writer.own is not None
    writer.own(inputs, place)
    line = refuses(writer.arguments(inputs, place), tmp_path, capsys)
    assert f"{place} is a " in line
    assert all(option in line for option in writer.force)


@pytest.mark.parametrize(
    ("writer", "read"),
    [
        pytest.param(writer, read, id=f"{writer.command}-{read}")
        for writer in WRITERS
        for read in writer.reads
    ],
)
def test_what_it_reads_is_never_written_over(
    writer: Writer, read: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refuses([*writer.arguments(inputs, inputs / read), *writer.force], tmp_path, capsys)


@pytest.mark.parametrize("put", [put_file, put_folder, put_link_to_file])
def test_a_report_replaces_only_a_report(
    put: Callable[[Path], None], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inputs / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "seconds": 1.0}\n')
    assert main(["report", str(inputs / "run")]) == 0
    assert main(["report", str(inputs / "run")]) == 0
    page = inputs / "run" / "report.html"
    assert capsys.readouterr().out == f"{page}\n" * 2
    page.unlink()
    put(page)
    assert str(page) in refuses(["report", str(inputs / "run")], tmp_path, capsys)


def test_a_demonstration_takes_a_free_name(tmp_path: Path) -> None:
    assert _free_run_folder(tmp_path) == tmp_path / "dates"
    (tmp_path / "dates").mkdir()
    (tmp_path / "dates-2").symlink_to("nowhere")
    assert _free_run_folder(tmp_path) == tmp_path / "dates-3"
