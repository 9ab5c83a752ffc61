"""What holds for every test."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import structlog


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Models of tests gain nothing from a second thread, and lose much by it where other work runs beside them."""
    if "torch" in sys.modules:  # a test of the server must not be the one to import it
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _log_as_it_was() -> Iterator[None]:
    """A file of tests that sets up its process's log, such as one with a `Translator`, leaves none of it behind."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _no_descriptor_is_closed_twice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The number of a closed descriptor soon belongs to another file: the second close would close that one."""
    closed_again: list[int] = []
    close = os.close

    def close_once(descriptor: int) -> None:
        try:
            close(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                closed_again.append(descriptor)
            raise

    monkeypatch.setattr(os, "close", close_once)
    yield
    assert not closed_again, f"closed twice: {closed_again}"


@dataclass(frozen=True)
class Pipe:
    """Both ends of a pipe. A test may close either."""

    reader: io.FileIO
    writer: io.FileIO


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reader, writer = os.pipe()
    with io.FileIO(reader, "rb") as reading, io.FileIO(writer, "wb") as writing:
        yield Pipe(reading, writing)
