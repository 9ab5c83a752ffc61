"""Messages and descriptors between processes: nothing that is handed over stays open here."""

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
