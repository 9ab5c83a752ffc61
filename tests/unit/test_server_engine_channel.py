"""Messages and descriptors between processes: nothing that is handed over stays open here."""

import asyncio
import os

import pytest

from dragoman.server.engine.processes.messages import AddFront, LaneReady
from dragoman.server.processes.channel import Channel, packet_pair


@pytest.mark.parametrize("is_closed", [True, False])
def test_descriptors_that_cannot_be_sent_are_closed(*, is_closed: bool) -> None:
    ours, theirs = packet_pair()
    channel: Channel[LaneReady] = Channel(ours, LaneReady)
    theirs.close()
    if is_closed:
        channel.close()
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with pytest.raises(ConnectionError):
        channel.send(AddFront(1), [writing])
    if not is_closed:
        channel.close()
    assert os.read(reading, 1) == b"", "nobody has the other end any more"
    os.close(reading)


async def test_what_the_peer_did_not_take_at_first_is_sent_as_soon_as_it_does() -> None:
    """No later message has to push an answer on."""
    ours, theirs = packet_pair()
    sender: Channel[LaneReady] = Channel(ours, LaneReady)
    receiver: Channel[AddFront] = Channel(theirs, AddFront)
    sender.flush_in(asyncio.get_running_loop())
    for _ in range(2):
        num_sent = 0
        while not sender.has_unsent:
            sender.send(AddFront(num_sent))
            num_sent += 1
        for number in range(num_sent, num_sent + 10):
            sender.send(AddFront(number))
        received: list[int] = []
        async with asyncio.timeout(20):
            while len(received) < num_sent + 10:
                while (told := receiver.receive()) is not None:
                    received.append(told[0].front)
                await asyncio.sleep(0)
        assert received == list(range(num_sent + 10))
        assert not sender.has_unsent
    while not sender.has_unsent:
        sender.send(AddFront(0))
    receiver.close()
    async with asyncio.timeout(20):  # the loop finds the peer gone, and looks at the socket no longer
        while sender._has_writer:
            await asyncio.sleep(0)
    assert not asyncio.get_running_loop().remove_writer(ours.fileno())
    sender.close()
