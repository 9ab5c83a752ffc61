"""A folder is replaced while system calls fail and signals arrive: it is the old one or the new one, whole."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trees import tree

from dragoman.common import exchange
from dragoman.common.errors import OperationError
from dragoman.common.files import Destination, atomic_write

CALLS = (
    "rename",
    "replace",
    "chmod",
    "fsync",
    "open",
    "close",
    "mkdir",
    "unlink",
    "rmdir",
    "scandir",
    "lstat",
)
OLD = {"mine": None, "mine/notebook": b"one", "mine/old": None, "mine/old/page": b"one"}
NEW = {"mine": None, "mine/notebook": b"two", "mine/new": None, "mine/new/page": b"two"}
REMOVAL = ("unlink", "rmdir", "scandir", "open", "close", "lstat")


class Calls:
    """Counts system calls, and has one of them fail or be followed by an interrupt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.fails: int | None = None
        self.is_interrupted = False
        self._counts = False
        for name in CALLS:
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))
        at_once = exchange._exchanged_at_once
        monkeypatch.setattr(exchange, "_exchanged_at_once", self._watched("exchange", at_once))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            if not self._counts:
                return call(*args, **options)
            self.names.append(name)
            if len(self.names) - 1 != self.fails:
                return call(*args, **options)
            if self.is_interrupted:
                _let_go(call(*args, **options))
                raise KeyboardInterrupt
            raise OSError(errno.EIO, "Input/output error")

        return watched

    def replace(self, place: Path) -> None:
        """Replaces the notebook at `place`, counting."""
        destination = Destination(
            path=place, kind="a notebook", is_folder=True, flaw=lambda _: None, replaces=True
        )
        with destination.folder() as scratch:
            (scratch / "notebook").write_text("two")
            (scratch / "new").mkdir()
            (scratch / "new" / "page").write_text("two")
            self._counts = True
        self._counts = False


def _let_go(opened: object) -> None:
    """Close what nobody gets."""
    if type(opened) is int:
        os.close(opened)
    elif hasattr(opened, "close"):
        opened.close()


def put_old(folder: Path) -> None:
    (folder / "mine" / "old").mkdir(parents=True)
    (folder / "mine" / "notebook").write_text("one")
    (folder / "mine" / "old" / "page").write_text("one")


def rehearse(folder: Path, *, at_once: bool, fails: int | None = None, interrupted: bool = False) -> "Ending":
    """Replace a folder in which call number `fails` fails or is followed by an interrupt."""
    folder.mkdir()
    put_old(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not at_once:
            monkeypatch.setattr(exchange, "_exchanged_at_once", lambda *_: False)
        calls = Calls(monkeypatch)
        calls.fails, calls.is_interrupted = fails, interrupted
        raised: BaseException | None = None
        try:
            calls.replace(folder / "mine")
        except (OperationError, KeyboardInterrupt) as error:
            raised = error
    return Ending(calls.names, raised, tree(folder))


class Ending:
    """What came of it: the calls, what was raised, and what is in the place and beside it."""

    def __init__(self, names: list[str], raised: BaseException | None, left: dict[str, Any]) -> None:
        self.names = names
        self.raised = raised
        self.place = {name: value for name, value in left.items() if name.split("/")[0] == "mine"}
        self.beside = {name.split("/")[0] for name in left if name.split("/")[0] != "mine"}


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in steps"])
def test_a_folder_is_replaced_whole(tmp_path: Path, at_once: bool) -> None:
    ending = rehearse(tmp_path / "sound", at_once=at_once)
    assert (ending.raised, ending.place, ending.beside) == (None, NEW, set())
    renames = [name for name in ending.names if name in {"exchange", "rename"}]
    assert renames == (["exchange"] if at_once else ["exchange", "rename", "rename", "rename"])


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in steps"])
def test_whichever_call_fails_the_place_holds_the_old_or_the_new_whole(tmp_path: Path, at_once: bool) -> None:
    names = rehearse(tmp_path / "sound", at_once=at_once).names
    for fails, name in enumerate(names):
        ending = rehearse(tmp_path / str(fails), at_once=at_once, fails=fails)
        said = f"call {fails}, {name}: {ending.raised}"
        assert ending.place in (OLD, NEW), said
        if ending.raised is None:  # what failed was no matter
            assert (ending.place, ending.beside) == (NEW, set()), said
        elif ending.place == OLD:
            assert "cannot write" in str(ending.raised), said
            assert not ending.beside, said
        else:
            assert name in REMOVAL, said
            [kept] = ending.beside
            assert kept in str(ending.raised), said
            assert "is written, but what it replaced, now" in str(ending.raised), said


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in steps"])
def test_whenever_an_interrupt_comes_the_place_holds_the_old_or_the_new_whole(
    tmp_path: Path, at_once: bool
) -> None:
    names = rehearse(tmp_path / "sound", at_once=at_once).names
    renamed = max(place for place, name in enumerate(names) if name in {"exchange", "rename"})
    for fails, name in enumerate(names):
        if name == "close":  # rmtree then closes again what is closed
            continue
        ending = rehearse(tmp_path / str(fails), at_once=at_once, fails=fails, interrupted=True)
        said = f"after call {fails}, {name}"
        assert isinstance(ending.raised, KeyboardInterrupt), said
        assert ending.place == (OLD if fails <= renamed else NEW), said
        if ending.place == OLD:
            assert not ending.beside, said


def test_an_old_folder_that_cannot_be_put_back_is_whole_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two failures at once: what is there turns out to be something else, and the exchange cannot be undone."""
    put_old(tmp_path)
    exchanged, num_calls = exchange._exchanged_at_once, 0

    def once(first: Path, second: Path) -> bool:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            raise OSError(errno.EIO, "Input/output error")
        return exchanged(first, second)

    monkeypatch.setattr(exchange, "_exchanged_at_once", once)
    flaws = iter([None, None, "it is a thesis"])
    place = Destination(
        path=tmp_path / "mine", kind="a notebook", is_folder=True, flaw=lambda _: next(flaws), replaces=True
    )
    with (
        pytest.raises(OperationError, match=r"is whole, in .*cannot be put back: Input") as refused,
        place.folder() as scratch,
    ):
        (scratch / "notebook").write_text("two")
    [kept] = (path for path in tmp_path.iterdir() if path.name != "mine")
    assert str(kept) in str(refused.value)
    assert tree(kept) == {"notebook": b"one", "old": None, "old/page": b"one"}


@pytest.mark.parametrize("name", ["replace", "chmod", "fsync"])
def test_a_file_whose_writing_fails_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "mine").write_text("one")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OperationError, match="mine: Input/output error"):
        atomic_write(tmp_path / "mine", "two")
    assert tree(tmp_path) == {"mine": b"one"}
