"""What a command may write over, and that a folder is replaced whole or stays as it was."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.trees import tree

from dragoman.common.errors import OperationError, UsageError
from dragoman.common.files import Destination, atomic_file, atomic_write, check_writable


def notebook_flaw(path: Path) -> str | None:
    if not path.is_dir():
        return "it is a file"
    return None if (path / "notebook").is_file() else "it holds no notebook"


def notebook(path: Path, *, replaces: bool = False, inputs: tuple[Path, ...] = ()) -> Destination:
    return Destination(
        path=path, kind="a notebook", is_folder=True, flaw=notebook_flaw, inputs=inputs, replaces=replaces
    )


def write(destination: Destination, page: str) -> None:
    with destination.folder() as scratch:
        (scratch / "notebook").write_text(page)


@pytest.mark.parametrize("is_there", [False, True], ids=["absent", "empty"])
def test_something_new_is_written(tmp_path: Path, is_there: bool) -> None:
    path = tmp_path / "deep" / "mine"
    if is_there:
        path.mkdir(parents=True)
    write(notebook(path), "one")
    assert tree(tmp_path) == {"deep": None, "deep/mine": None, "deep/mine/notebook": b"one"}


def test_a_thing_of_its_kind_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    write(notebook(tmp_path / "mine"), "one")
    with pytest.raises(UsageError, match=r"mine is a notebook already: give --force to replace it"):
        write(notebook(tmp_path / "mine"), "two")
    assert tree(tmp_path) == {"mine": None, "mine/notebook": b"one"}
    write(notebook(tmp_path / "mine", replaces=True), "two")
    assert tree(tmp_path) == {"mine": None, "mine/notebook": b"two"}


def put_file(path: Path) -> None:
    path.write_text("thesis")


def put_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis").write_text("thesis")


def put_link(path: Path) -> None:
    put_folder(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def put_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("put", [put_file, put_folder, put_link, put_dangling_link])
@pytest.mark.parametrize("moment", ["before", "meanwhile"])
@pytest.mark.parametrize("replaces", [False, True])
def test_nothing_else_is_touched(
    tmp_path: Path, put: Callable[[Path], None], moment: str, replaces: bool
) -> None:
    destination = notebook(tmp_path / "mine", replaces=replaces)
    if moment == "before":
        put(destination.path)
        before = tree(tmp_path)
        with pytest.raises(UsageError), destination.folder():
            raise AssertionError("the work began")
    else:
        with pytest.raises(UsageError), destination.folder() as scratch:
            (scratch / "notebook").write_text("two")
            put(destination.path)
            before = tree(tmp_path)
    assert tree(tmp_path) == {name: value for name, value in before.items() if not name.startswith(".")}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("read", "is what this command reads"),
        ("read/in", "lies in"),
        (".", "holds"),
        ("same", "is what this command"),
    ],
)
def test_what_is_read_is_not_written(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "read").mkdir()
    (tmp_path / "real" / "same").symlink_to("read")
    (tmp_path / "link").symlink_to("real")
    destination = notebook(tmp_path / "link" / place, inputs=(tmp_path / "real" / "read",), replaces=True)
    with pytest.raises(UsageError, match=message):
        destination.check()


def test_a_hard_link_to_what_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "read").write_text("texts")
    os.link(tmp_path / "read", tmp_path / "other")
    with pytest.raises(UsageError, match="is what this command reads"):
        notebook(tmp_path / "other", inputs=(tmp_path / "read",), replaces=True).check()


def test_a_place_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"mine cannot be made: .*/file is a file"):
        notebook(tmp_path / "file" / "mine").check()


def test_a_place_below_a_link_that_leads_nowhere_is_refused_with_the_link(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("gone")
    said = r"/dangling is a link to gone, which leads nowhere"
    for place in (tmp_path / "dangling" / "1", tmp_path / "dangling" / "deep" / "1"):
        with pytest.raises(UsageError, match=rf"/1 cannot be made: .*{said}"):
            notebook(place).check()
        with pytest.raises(OperationError, match=rf"cannot write .*/1: .*{said}"):
            atomic_write(place, "text")
        with pytest.raises(OperationError, match=rf"cannot write .*/1: .*{said}"):
            check_writable(place)
    with pytest.raises(OperationError, match=said):
        check_writable(tmp_path / "dangling")
    assert [path.name for path in tmp_path.iterdir()] == ["dangling"]


def test_an_error_of_a_file_that_the_work_reads_is_not_one_of_the_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"read me"), notebook(tmp_path / "out" / "mine").folder():
        (tmp_path / "in" / "read me").read_text()
    with (
        pytest.raises(OperationError, match=r"cannot write .*mine: File name too long"),
        notebook(tmp_path / "out" / "mine").folder() as scratch,
    ):
        (scratch / ("page" * 100)).touch()
    assert tree(tmp_path) == {}


class Taken:
    """Has something take a place right after the folder that was there stepped aside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
        self.num_renames = 0
        original = Path.rename

        def rename(path: Path, target: Path) -> Path:
            done = original(path, target)
            self.num_renames += 1
            if self.num_renames == 1:
                put_file(place)
            return done

        monkeypatch.setattr(Path, "rename", rename)


@pytest.fixture
def exchanges_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that cannot exchange two names at once."""
    monkeypatch.setattr("dragoman.common.exchange._exchanged_at_once", lambda *_: False)


@pytest.mark.usefixtures("exchanges_in_steps")
def test_where_a_place_is_taken_at_the_last_moment_the_error_says_where_all_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "mine"
    write(notebook(place), "one")
    Taken(monkeypatch, place)
    with pytest.raises(OperationError, match="what was there is whole, in") as refused:
        write(notebook(place, replaces=True), "two")
    [kept] = (path for path in tmp_path.iterdir() if path != place)
    assert str(kept) in str(refused.value)
    assert tree(tmp_path) == {"mine": b"thesis", kept.name: None, f"{kept.name}/notebook": b"one"}


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_failure_removes_the_folders_that_were_made(tmp_path: Path, is_folder: bool) -> None:
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "a" / "b"
    opened = notebook(path).folder() if is_folder else atomic_file(path)
    with pytest.raises(ZeroDivisionError), opened:
        raise ZeroDivisionError
    assert tree(tmp_path) == {"there": None}


def test_a_link_to_a_file_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("one")
    (tmp_path / "link").symlink_to("real")
    atomic_write(tmp_path / "link", "two")
    assert tree(tmp_path) == {"real": b"two", "link": "real"}


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OperationError, match="is no regular file"):
        atomic_write(tmp_path / "pipe", "two")
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


_WAITING = """
import pathlib, signal, sys
from dragoman.common.files import Destination, atomic_file
path = pathlib.Path(sys.argv[1])
place = Destination(path=path, kind="it", is_folder=True, flaw=lambda _: None)
with place.folder() if sys.argv[2] == "folder" else atomic_file(path):
    print("writing", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_signal_that_ends_the_process_leaves_nothing(
    tmp_path: Path, number: signal.Signals, what: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WAITING, str(tmp_path / "a" / "b"), what],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        assert len(list((tmp_path / "a").iterdir())) == 1
        process.send_signal(number)
        assert process.wait(timeout=10) == 128 + number
    assert tree(tmp_path) == {}
