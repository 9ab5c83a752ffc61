"""The engine's host: it has all models' weights, and forks the processes of lanes (`host_lanes.py`).

It has one thread, so that a fork takes a whole process along. It waits for its channels alone: a lane's channel ends
with the lane. It ends when the server's does, or with it (`linux.die_with_parent`); so do its lanes.
"""

import os
import select
from collections import deque
from typing import NoReturn

from dragoman.common.errors import DragomanError
from dragoman.server.engine.processes.host_changes import HostChanges, HostModel, ModelSource
from dragoman.server.engine.processes.host_fronts import HostFronts
from dragoman.server.engine.processes.host_lanes import HostLanes, LaneProcess, LaneStartError
from dragoman.server.engine.processes.messages import (
    AddFront,
    Alive,
    Begin,
    ChangeTaken,
    EndLane,
    FromFront,
    LinkLane,
    LoadingEnded,
    LoadVersion,
    ModelNotLoaded,
    Probe,
    ToHost,
    UnloadVersion,
)
from dragoman.server.processes.channel import Channel

__all__ = ["Host"]


class Host:
    """All models, the lanes that have them and the fronts that use those.

    Args:
        server: the channel with the server process.
        begin: what that said first.
    """

    def __init__(self, server: "Channel[ToHost]", begin: Begin) -> None:
        self._server = server
        self._poll = select.epoll()
        self._poll.register(server.fileno(), select.EPOLLIN)
        self._fronts = HostFronts(self._poll)
        self._lanes = HostLanes(self._fronts, self._poll, self._leave)
        self._changes = HostChanges(
            self._lanes,
            self._fronts,
            server,
            self._poll,
            self._leave,
            drain_limit_s=begin.drain_limit_s,
        )
        self._requested_changes: deque[LoadVersion | UnloadVersion] = deque()
        self._is_complete = False

    def add_model(self, model: HostModel) -> None:
        """Before `serve`: have a model on all lanes, and announce it to fronts."""
        self._lanes.starts[model.message.key] = model.start
        self._fronts.announce(model.message.key, model.message, model.contents)

    def add_not_loaded(self, message: ModelNotLoaded) -> None:
        """Before `serve`: announce to fronts a folder that is not served."""
        self._fronts.announce(f"not loaded: {message.name}/{message.version}", message)

    def serve(self, num_lanes: int, source: ModelSource) -> NoReturn:
        """Serve to the server's end: start lanes, replace those that die, and change the models that they have.

        Raises:
            DragomanError: at the start a lane cannot have its rows, or dies again and again before it waits for work.
        """
        self._changes.source = source
        self._lanes.start(num_lanes)
        while True:
            if not self._is_complete and all(lane.is_ready for lane in self._lanes.serving):
                self._is_complete = True
                self._server.send(LoadingEnded())
                self._fronts.send_all(LoadingEnded())
            if self._is_complete and self._requested_changes and self._changes.is_idle:
                self._changes.begin(self._requested_changes.popleft())
            self._changes.advance()
            self._wait()

    def _wait(self) -> None:
        """Wait for any of the channels, or for the time of what is to end to be over, and act."""
        left_s = [each for each in (self._lanes.end_late(), self._changes.end_late()) if each is not None]
        for descriptor, event in self._poll.poll(min(left_s, default=None)):
            # Looked up anew each time: what was done for one event may have closed the descriptor of the next.
            if descriptor == self._server.fileno():
                self._receive_from_server()
            elif (lane := self._lanes.find(descriptor)) is not None:
                self._receive_from_lane(lane)
            elif not self._changes.receive(descriptor):
                for number, channel in self._fronts.channels.items():
                    if channel.fileno() == descriptor:
                        self._fronts.receive(number, event, self._obey_front)
                        break

    def _receive_from_server(self) -> None:
        try:
            while received := self._server.receive():
                message, descriptors = received
                if isinstance(message, AddFront):
                    for descriptor in descriptors:
                        self._add_front(message.front, descriptor)
                elif isinstance(message, Probe):
                    self._server.send(Alive())
                elif not isinstance(message, Begin):
                    self._requested_changes.append(message)
        except ConnectionError:
            self._end()

    def _add_front(self, number: int, descriptor: int) -> None:
        self._fronts.add(number, descriptor)
        self._lanes.connect(number)
        if self._is_complete:
            self._fronts.send(number, LoadingEnded())

    def _obey_front(self, number: int, message: FromFront) -> None:
        match message:
            case LinkLane(pid):
                self._lanes.reconnect(pid, number)
            case EndLane(pid):
                self._lanes.end_process(pid)
            case ChangeTaken(model):
                self._changes.confirm(number, model)

    def _receive_from_lane(self, lane: LaneProcess) -> None:
        try:
            self._lanes.receive(lane)
        except DragomanError as error:
            if lane not in self._lanes.coming:
                raise
            self._changes.fail_generation(error, error.kind if isinstance(error, LaneStartError) else "")

    def _leave(self) -> None:
        """In a forked process: close and forget what belongs to the host.

        With a copy of a channel there its peer would not see the host's end.
        """
        self._poll.close()
        self._server.close()
        self._fronts.leave()
        self._lanes.leave()
        self._changes.leave()

    def _end(self) -> NoReturn:
        """End the lanes and this process."""
        self._lanes.end_all()
        self._changes.kill()
        os._exit(0)
