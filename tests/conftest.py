"""What holds for every test."""

import errno
import gc
import io
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis
import pytest
import structlog

# Tests start hundreds of processes. Each would compile all of the project anew, which takes longer than the rest of
# its imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

LANE_END_S = 20.0

# How long an example takes says how busy the machine is, and nothing else.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Before workers start: all processes of a run share a folder, and what is costly to make is made there once."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="dragoman-tests-")
        os.environ["TESTS_SHARED_FOLDER"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_collection_finish() -> None:
    """Modules and collected tests stay to the end: each full collection of garbage would look at them all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)  # the exporter makes objects by the million: 700 cost it a tenth of its time


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Models of tests gain nothing from a second thread, and lose much by it where other work runs beside them."""
    if "torch" in sys.modules:  # a test of the server must not be the one to import it
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_disk_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is for shows where the power fails; a training that saves each step waits longer than it computes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True, scope="module")
def _log_as_it_was() -> Iterator[None]:
    """A file of tests that sets up its process's log, such as one with a `Translator`, leaves none of it behind."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True, scope="module")
def _no_lane_is_left() -> Iterator[None]:
    """Lanes of an engine that nobody has closed keep their memory, and tests of other files find their threads."""
    before = set(threading.enumerate())
    yield
    lanes = [each for each in set(threading.enumerate()) - before if each.name.startswith("lane-")]
    for lane in lanes:
        lane.join(LANE_END_S)  # it may end later than what has told it to
    assert not [each.name for each in lanes if each.is_alive()], "an engine is not closed"


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
