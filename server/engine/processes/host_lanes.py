"""The lanes of a host: their processes are forked, replaced when they die, and make way for others.

All lanes that serve at a time have the same models. To have a model more there is a new generation: new processes with
all of it are forked beside those that serve. Once all wait for work they take over, and the others retire.
"""

import contextlib
import gc
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import structlog

from dragoman.common.errors import OperationError
from dragoman.server.engine.processes.host_fronts import HostFronts
from dragoman.server.engine.processes.lane_process import LaneStart, run_lane
from dragoman.server.engine.processes.messages import (
    AddFront,
    DropModel,
    FromLane,
    LaneAdded,
    LaneFailed,
    LaneRemoved,
    LaneRetired,
    RetireLane,
)
from dragoman.server.errors import ResourceUnavailable
from dragoman.server.processes.channel import Channel, packet_pair, stream_pair
from dragoman.server.processes.linux import how_it_ended, trim_memory

__all__ = ["MAX_FAILED_STARTS", "HostLanes", "LaneProcess", "LaneStartError", "collect_garbage"]

MAX_FAILED_STARTS = 5
"""Of a lane, in a row. It will not get any further then."""

MAX_START_S = 120.0
"""A lane's process that does not wait for work by then never will. A change of what is served waits for it."""

_FORK_RETRY_S = 0.2

_log = structlog.get_logger(__name__)


class LaneStartError(OperationError):
    """A lane said why it cannot work.

    Attributes:
        kind: the name of the error's class in the lane.
    """

    def __init__(self, told: LaneFailed) -> None:
        super().__init__(told.message)
        self.kind = told.kind


@dataclass(eq=False, slots=True)
class LaneProcess:
    """The place of a lane, and the process that is in it.

    Attributes:
        index: its number.
        starts: make the workers of the models that a process in this place has.
        models: keys of those that the present process had at its start.
        is_ready: whether it waits for work.
        num_failed_starts: processes in a row that died before they were ready.
        ends_at_s: when it is ended as the time for it to start, or to retire, is over; None: it serves.
    """

    index: int
    starts: dict[str, LaneStart]
    models: tuple[str, ...] = ()
    pid: int = 0
    channel: "Channel[FromLane]" = field(init=False)
    is_ready: bool = False
    num_failed_starts: int = 0
    ends_at_s: float | None = None


class HostLanes:
    """The lanes of a host.

    Attributes:
        starts: of the models that the lanes which serve have, by key.
        serving: those that fronts use.
        coming: a generation that is being started.
        retiring: those that end once nothing runs there.
    """

    def __init__(self, fronts: HostFronts, poll: "select.epoll", leave_host: Callable[[], object]) -> None:
        """Without a lane.

        Args:
            fronts: of the host.
            poll: of the host: what comes from lanes is read by the host.
            leave_host: called in a lane: closes and forgets what belongs to the host.
        """
        self.starts: dict[str, LaneStart] = {}
        self.serving: list[LaneProcess] = []
        self.coming: list[LaneProcess] = []
        self.retiring: list[LaneProcess] = []
        self._fronts = fronts
        self._poll = poll
        self._leave_host = leave_host

    def start(self, num_lanes: int) -> None:
        """Fork the first generation, which serves one by one.

        Raises:
            ResourceUnavailable: there can be no process.
        """
        collect_garbage()
        self.serving = [LaneProcess(index, self.starts) for index in range(num_lanes)]
        for lane in self.serving:
            self._fork(lane)

    def begin_generation(self, starts: dict[str, LaneStart]) -> None:
        """Fork as many lanes as serve, with these models; `coming` until `take_over` or `give_up`.

        Raises:
            ResourceUnavailable: there can be no process.
        """
        collect_garbage()
        self.coming = [LaneProcess(lane.index, starts) for lane in self.serving]
        for lane in self.coming:
            self._fork(lane)

    def is_generation_ready(self) -> bool:
        """Whether all of `coming` wait for work."""
        return all(lane.is_ready for lane in self.coming)

    def take_over(self, limit_s: float) -> None:
        """Have those that are coming serve, and the others retire within `limit_s`."""
        [starts] = {id(lane.starts): lane.starts for lane in self.coming}.values()
        before, self.serving, self.coming = self.serving, self.coming, []
        self.starts = dict(starts)
        for lane in self.serving:
            lane.starts = self.starts
            self._connect_all(lane)
        for lane in before:
            self._retire(lane, limit_s)

    def give_up(self) -> None:
        """End those that are coming."""
        for lane in self.coming:
            if lane.pid:
                self._end(lane)
        self.coming = []

    def drop_model(self, model: str) -> None:
        """Have all lanes give up a model."""
        self.starts.pop(model, None)
        for lane in self._all():
            with contextlib.suppress(ConnectionError):  # it has ended, which its channel says next
                lane.channel.send(DropModel(model))

    def find(self, descriptor: int) -> LaneProcess | None:
        """The lane whose channel has this descriptor."""
        return next((lane for lane in self._all() if lane.channel.fileno() == descriptor), None)

    def receive(self, lane: LaneProcess) -> None:
        """Read what a lane says, and replace it where it has ended.

        Raises:
            DragomanError: it cannot have its rows, or dies again and again before it waits for work.
        """
        try:
            while received := lane.channel.receive():
                message, _ = received
                if isinstance(message, LaneFailed):
                    raise LaneStartError(message)
                lane.is_ready, lane.num_failed_starts, lane.ends_at_s = True, 0, None
                if lane in self.serving:
                    self._connect_all(lane)
        except ConnectionError:
            self._handle_death(lane)

    def connect(self, number: int) -> None:
        """Give a front links with all lanes that serve."""
        for lane in self.serving:
            if lane.is_ready:
                self._connect(lane, number)

    def reconnect(self, pid: int, number: int) -> None:
        """Give a front another link with a lane's process, if there still is one that serves."""
        for lane in self.serving:
            if lane.pid == pid and lane.is_ready:
                self._connect(lane, number)

    def end_process(self, pid: int) -> None:
        """Kill a lane's process that gives no sign of life."""
        if any(lane.pid == pid for lane in self._all()):  # else it has ended, and the number may be another's
            _log.warning("lane_silent", pid=pid)
            os.kill(pid, signal.SIGKILL)

    def end_late(self) -> float | None:
        """Kill lanes whose time to start or to retire is over; returns the seconds until the next one's is."""
        now_s = time.monotonic()
        for lane in self._all():
            if lane.ends_at_s is not None and lane.ends_at_s <= now_s:
                what = "retire" if lane in self.retiring else "start"
                _log.warning(
                    "lane_killed", lane=lane.index, pid=lane.pid, reason=f"its time to {what} is over"
                )
                lane.ends_at_s = None
                os.kill(lane.pid, signal.SIGKILL)  # its channel says the rest
        ends = [lane.ends_at_s for lane in self._all() if lane.ends_at_s is not None]
        return max(0.0, min(ends) - now_s) if ends else None

    def end_all(self) -> None:
        """Kill all lanes."""
        for lane in self._all():
            os.kill(lane.pid, signal.SIGKILL)

    def leave(self) -> None:
        """In a forked process: close and forget all of it. A model's memory is free when its worker has gone."""
        for lane in self._all():
            lane.channel.close()
            lane.starts = {}
        self.starts.clear()

    def _all(self) -> Iterator[LaneProcess]:
        for lane in (*self.serving, *self.coming, *self.retiring):
            if lane.pid:
                yield lane

    def _fork(self, lane: LaneProcess) -> None:
        ours, theirs = packet_pair()
        host = os.getpid()
        while True:
            try:
                pid = os.fork()
                break
            except OSError as error:  # no process or no memory left, perhaps not for long
                self._count_failed_start(lane, str(error.strerror))
                time.sleep(_FORK_RETRY_S)
        if not pid:
            ours.close()
            run_lane(lane.starts, theirs, self._leave_host, lane=lane.index, host=host)
        theirs.close()
        lane.pid, lane.is_ready, lane.models = pid, False, tuple(lane.starts)
        lane.ends_at_s = time.monotonic() + MAX_START_S
        lane.channel = Channel(ours, FromLane)
        self._poll.register(ours.fileno(), select.EPOLLIN)

    def _connect_all(self, lane: LaneProcess) -> None:
        for number in list(self._fronts.channels):
            self._connect(lane, number)

    def _connect(self, lane: LaneProcess, number: int) -> None:
        """Give a front and a lane the two ends of a link."""
        of_lane, of_front = stream_pair()
        with of_front:
            try:
                lane.channel.send(AddFront(number), [of_lane.detach()])
            except ConnectionError:  # it is dead, which its channel says next
                return
            told = LaneAdded(lane.index, lane.pid, list(lane.models))
            self._fronts.send(number, told, [of_front.fileno()])

    def _retire(self, lane: LaneProcess, limit_s: float) -> None:
        if not lane.is_ready:  # no front knows it
            if lane.pid:
                self._end(lane)
            return
        lane.starts, lane.ends_at_s = {}, time.monotonic() + limit_s
        self.retiring.append(lane)
        self._fronts.send_all(LaneRetired(lane.pid))
        with contextlib.suppress(ConnectionError):  # it has ended, which its channel says next
            lane.channel.send(RetireLane())

    def _handle_death(self, lane: LaneProcess) -> None:
        """A lane's process has ended. Say how, and start another one unless it had to end."""
        pid, how = lane.pid, self._end(lane)
        if lane in self.retiring:
            self.retiring.remove(lane)
            if how != "exit code 0":
                _log.error("lane_died", lane=lane.index, pid=pid, how=how)
            self._fronts.send_all(LaneRemoved(lane.index, pid, how))
            return
        _log.error("lane_died", lane=lane.index, pid=pid, how=how)
        if not lane.is_ready:
            self._count_failed_start(lane, how)
        elif lane in self.serving:
            self._fronts.send_all(LaneRemoved(lane.index, pid, how))
        self._fork(lane)

    def _end(self, lane: LaneProcess) -> str:
        """Kill a lane's process if it has not ended, and reap it; returns how it ended, for people."""
        self._poll.unregister(lane.channel.fileno())
        lane.channel.close()
        # Where it has closed its channel: whatever it does, it is of no use any more.
        os.kill(lane.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(lane.pid, 0)[1])
        lane.pid = 0
        return how_it_ended(code)

    def _count_failed_start(self, lane: LaneProcess, how: str) -> None:
        lane.num_failed_starts += 1
        if lane.num_failed_starts == MAX_FAILED_STARTS:
            raise ResourceUnavailable(
                f"lane {lane.index} could not start {MAX_FAILED_STARTS} times in a row: {how}; "
                "lower engine.lanes or engine.slots_per_lane"
            )


def collect_garbage() -> None:
    """Free what nothing needs any more, and have the collector leave alone what is there then.

    A lane that collected garbage would copy every page that it looks at. What was left alone before is looked at again:
    a model that was unloaded is among it.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    trim_memory()
