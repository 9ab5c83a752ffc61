"""Messages and descriptors between processes: nothing that is handed over stays open here."""

import os

import pytest

from dragoman.server.engine.processes.channel import Channel, packet_pair
from dragoman.server.engine.processes.messages import AddFront, LaneReady


@pytest.mark.parametrize("who", ["the peer", "this end"])
def test_descriptors_are_closed_where_they_cannot_be_sent(who: str) -> None:
    ours, theirs = packet_pair()
    channel: Channel[LaneReady] = Channel(ours, LaneReady)
    if who == "the peer":
        theirs.close()
    else:
        channel.close()
    reading, writing = os.pipe()
    with pytest.raises(ConnectionError):
        channel.send(AddFront(1), [writing])
    channel.close()
    assert os.read(reading, 1) == b"", "nobody has the other end any more"
    os.close(reading)
    theirs.close()
