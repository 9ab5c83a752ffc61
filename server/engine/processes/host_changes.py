"""Changes of what a host serves, one at a time: a version more, or a version less.

    more: a child tries it -> the host loads it -> new lanes have it too -> they take over -> all fronts have it
    less: no front has calls for it any more -> all lanes and the host give it up

Until new lanes take over nothing has changed for anybody: whatever goes wrong before leaves what is served as it is.
"""

import functools
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from dragoman.common.errors import DragomanError
from dragoman.server.engine.processes.checking import CheckingProcess
from dragoman.server.engine.processes.host_fronts import HostFronts
from dragoman.server.engine.processes.host_lanes import HostLanes, collect_garbage
from dragoman.server.engine.processes.lane_process import LaneStart
from dragoman.server.engine.processes.messages import (
    ChangeEnded,
    Checked,
    CheckFailed,
    LoadVersion,
    ModelAdded,
    ModelLoaded,
    ModelRemoved,
    ToHost,
    UnloadVersion,
)
from dragoman.server.errors import BundleError, ResourceUnavailable
from dragoman.server.processes.channel import Channel
from dragoman.server.processes.linux import KILLED

__all__ = ["HostChanges", "HostModel", "ModelSource"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HostModel:
    """A model that the host has loaded.

    Attributes:
        message: to fronts, with what they need of it.
        start: makes its worker on a lane.
        contents: its manifest and its tokenizer.
    """

    message: ModelLoaded
    start: LaneStart
    contents: tuple[bytes, bytes]


class ModelSource(Protocol):
    """Where a host has models from while it serves."""

    def check(self, name: str, version: str) -> Checked:
        """In a process of its own: try a version beside those that are served.

        Raises:
            DragomanError: it cannot be served.
        """

    def load(self, name: str, version: str, checked: Checked) -> HostModel:
        """Load what was tried.

        Raises:
            DragomanError: it cannot be loaded, or is not what was tried.
        """

    def forget(self, key: str) -> None:
        """A model is not served any more."""


@dataclass(eq=False, slots=True)
class _Change:
    """The change that is being made.

    Attributes:
        key: of the model.
        checking: tries it, at first.
        candidate: what the host has loaded and new lanes start with.
        waiting: fronts that have not taken the change; None: it has not come to them.
    """

    request: LoadVersion | UnloadVersion
    checking: CheckingProcess | None = None
    candidate: HostModel | None = None
    waiting: set[int] | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = f"{self.request.name}/{self.request.version}"


class HostChanges:
    """Makes the changes that the server process asks for."""

    def __init__(
        self,
        lanes: HostLanes,
        fronts: HostFronts,
        server: "Channel[ToHost]",
        poll: "select.epoll",
        leave_host: Callable[[], object],
        *,
        drain_limit_s: float,
    ) -> None:
        """`drain_limit_s` is the time that lanes have to retire, and calls for a version to end."""
        self.source: ModelSource | None = None
        self._lanes = lanes
        self._fronts = fronts
        self._server = server
        self._poll = poll
        self._leave_host = leave_host
        self._drain_limit_s = drain_limit_s
        self._change: _Change | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no change is being made."""
        return self._change is None

    def begin(self, request: LoadVersion | UnloadVersion) -> None:
        """Begin to make a change; there is none that is being made."""
        assert self._change is None
        change = self._change = _Change(request)
        is_there = change.key in self._lanes.starts
        if isinstance(request, UnloadVersion):
            if is_there:
                self._release(change)
            else:
                self._fail(ResourceUnavailable(f"{change.key} is not loaded"))
            return
        if is_there:
            self._fail(ResourceUnavailable(f"{change.key} is loaded already"))
            return
        assert self.source is not None
        # The child keeps the models that it is forked with: to free them would copy their pages.
        check = functools.partial(_check, self.source, request, list(self._lanes.starts.values()))
        try:
            change.checking = CheckingProcess(change.key, check, self._poll, self._leave_host)
        except OSError as error:
            self._fail(ResourceUnavailable(f"{change.key} cannot be checked: {error.strerror}"))

    def receive(self, descriptor: int) -> bool:
        """Receive from the checking child, if `descriptor` is its channel's; returns whether it is."""
        change = self._change
        if change is None or change.checking is None or change.checking.channel.fileno() != descriptor:
            return False
        try:
            received = change.checking.channel.receive()
        except ConnectionError:
            how, was_late = change.checking.end(), change.checking.was_late
            change.checking = None
            what = f"{change.key} ended the process that checked it: {how}"
            # Short of memory, the system kills it: that is no fault of the bundle.
            is_killed = how == KILLED and not was_late
            self._fail(ResourceUnavailable(what) if is_killed else BundleError(what))
            return True
        if received is not None:
            message, _ = received
            change.checking.end()
            change.checking = None
            if isinstance(message, CheckFailed):
                self._end(ChangeEnded(message.kind, message.message))
            else:
                self._load(change, message)
        return True

    def fail_generation(self, error: DragomanError, kind: str = "") -> None:
        """A lane of the new generation cannot work: what is served is served on."""
        self._lanes.give_up()
        self._fail(error, kind)

    def confirm(self, number: int, key: str) -> None:
        """Front `number` has made the change of the model with this key."""
        change = self._change
        if change is not None and change.waiting is not None and change.key == key:
            change.waiting.discard(number)

    def advance(self) -> None:
        """Go on with the change where what it waits for has come."""
        change = self._change
        if change is None:
            return
        if change.candidate is not None and change.waiting is None and self._lanes.is_generation_ready():
            self._take_over(change, change.candidate)
        if change.waiting is not None and not change.waiting & self._fronts.channels.keys():
            if isinstance(change.request, UnloadVersion):
                self._drop(change)
            else:
                self._end(ChangeEnded())

    def end_late(self) -> float | None:
        """End a checking child whose time is over; returns the seconds until it is."""
        checking = None if self._change is None else self._change.checking
        return None if checking is None else checking.end_late()

    def kill(self) -> None:
        """The host ends: so does the checking child."""
        if self._change is not None and self._change.checking is not None:
            self._change.checking.kill()

    def leave(self) -> None:
        """In a forked process: close and forget all of it."""
        if self._change is None:
            return
        if self._change.checking is not None:
            self._change.checking.leave()
        self._change.candidate = (
            None  # a frame of the host, which this process has too, has the change itself
        )

    def _load(self, change: _Change, checked: Checked) -> None:
        """Load what was checked, and start lanes that have it."""
        assert self.source is not None
        failed: ChangeEnded | None = None
        try:
            change.candidate = self.source.load(change.request.name, change.request.version, checked)
            # Nothing on the stack keeps the model where lanes are forked: it has to be free when they give it up.
            self._lanes.begin_generation({**self._lanes.starts, change.key: change.candidate.start})
        except DragomanError as error:
            failed = ChangeEnded(type(error).__name__, str(error))
        except Exception as error:  # noqa: BLE001  what is served is served on, whatever a library raises
            _log.error("load_failed", model=change.key, exc_info=error)
            what = f"{change.key} cannot be loaded: unexpected {type(error).__name__}"
            failed = ChangeEnded("OperationError", what)
        if failed is not None:  # the error is gone, and with it what its traceback kept
            self._lanes.give_up()
            self._end(failed)

    def _take_over(self, change: _Change, model: HostModel) -> None:
        self._fronts.announce(change.key, model.message, model.contents)
        self._lanes.take_over(self._drain_limit_s)
        change.candidate = None
        change.waiting = set(self._fronts.channels)
        self._fronts.send_all(ModelAdded(change.key))

    def _release(self, change: _Change) -> None:
        change.waiting = set(self._fronts.channels)
        self._fronts.forget(change.key)
        self._fronts.send_all(ModelRemoved(change.key, self._drain_limit_s))

    def _drop(self, change: _Change) -> None:
        assert self.source is not None
        self._lanes.drop_model(change.key)
        self.source.forget(change.key)
        collect_garbage()
        self._end(ChangeEnded())

    def _fail(self, error: DragomanError, kind: str = "") -> None:
        self._end(ChangeEnded(kind or type(error).__name__, str(error)))

    def _end(self, message: ChangeEnded) -> None:
        change, self._change = self._change, None
        assert change is not None
        if change.candidate is not None:
            assert self.source is not None
            self.source.forget(change.key)
            del change
            collect_garbage()
        self._server.send(message)


def _check(source: ModelSource, request: LoadVersion, _kept: Sequence[LaneStart]) -> Checked:
    return source.check(request.name, request.version)
