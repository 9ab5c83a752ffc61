"""A lane's end of its links: which commands come in which order when a front gets another link."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from dragoman.server.engine.api import Cancel, Command, Leave, ModelCommand
from dragoman.server.engine.lane_loop import DropWorker, ModelFront
from dragoman.server.engine.processes import port as ports
from dragoman.server.engine.processes.frames import framed
from dragoman.server.engine.processes.messages import AddFront, FromLane, ToLane
from dragoman.server.engine.processes.port import SocketPort
from dragoman.server.processes.channel import Channel, packet_pair, stream_pair

NUMBER = 7
FRONT = ("spell/1", NUMBER)


class Lane:
    """A port, and the host that it hears."""

    def __init__(self) -> None:
        ours, theirs = packet_pair()
        self.host: Channel[FromLane] = Channel(ours, FromLane)
        self._channel: Channel[ToLane] = Channel(theirs, ToLane)
        self.port = SocketPort(self._channel)

    def link(self) -> socket.socket:
        """A front's end of a new link."""
        of_lane, of_front = stream_pair()
        self.host.send(AddFront(NUMBER), [of_lane.detach()])
        return of_front

    def receive(self) -> list[tuple[ModelFront[int], Command | DropWorker]]:
        received = self.port.receive(wait=True)
        assert received is not None
        return received

    def close(self) -> None:
        self.host.close()
        while (received := self.port.receive(wait=True)) is not None:
            assert not received
        self._channel.close()


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane()
    yield lane
    lane.close()


def cancel(number: int) -> bytes:
    return framed(msgspec.msgpack.encode(ModelCommand("spell/1", Cancel([number]))))


def test_the_end_of_a_link_comes_before_what_the_next_one_brings(lane: Lane) -> None:
    with lane.link() as first:
        first.sendall(cancel(1))
        assert lane.port.receive(wait=False) in ([], [(FRONT, Cancel([1]))])
        lane.port.receive(wait=False)
        with lane.link() as second:
            second.sendall(cancel(2))
            first.close()  # read after the new one, or before it
            received = lane.receive()
            while received[-1] != (FRONT, Cancel([2])):
                received += lane.receive()
            assert received == [(FRONT, Leave()), (FRONT, Cancel([2]))]
            second.sendall(cancel(3))
            assert lane.receive() == [(FRONT, Cancel([3]))], "the new link stays"
        assert lane.receive() == [(FRONT, Leave())]


def test_a_frame_may_come_in_pieces(lane: Lane) -> None:
    with lane.link() as front:
        content = cancel(1) + cancel(2)
        for byte in content[:-1]:
            front.sendall(bytes([byte]))
            lane.port.receive(wait=False)
        front.sendall(content[-1:] + cancel(3))
        assert lane.receive() == [(FRONT, Cancel([2])), (FRONT, Cancel([3]))]
    assert lane.receive() == [(FRONT, Leave())]


def test_memory_goes_back_once_a_lane_that_has_worked_has_nothing_to_do(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = threading.Event()
    monkeypatch.setattr(ports, "trim_memory", freed.set)
    monkeypatch.setattr(ports, "REST_S", 0.02)
    with lane.link() as front, ThreadPoolExecutor(1) as waiting:
        front.sendall(cancel(1))
        assert lane.receive() == [(FRONT, Cancel([1]))]
        assert not freed.is_set(), "it has just worked"
        received = waiting.submit(lane.receive)
        assert freed.wait(20.0)
        freed.clear()
        assert not freed.wait(0.2), "once is enough"
        front.sendall(cancel(2))
        assert received.result(20.0) == [(FRONT, Cancel([2]))]
    assert lane.receive() == [(FRONT, Leave())]
