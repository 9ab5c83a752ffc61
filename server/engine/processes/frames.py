"""Frames on a stream: four bytes of length, big-endian, then the content; as `multiprocessing.connection` has them.

A frame without content asks for a sign of life, and is answered by another.
"""

__all__ = ["MAX_FRAME_BYTES", "MAX_QUEUED_BYTES", "READ_BYTES", "SIGN_OF_LIFE", "FrameReader", "framed"]

MAX_FRAME_BYTES = 1 << 28
"""A longer one cannot be right: requests are bounded by `max_message_bytes`, answers by the rows of a lane."""
MAX_QUEUED_BYTES = 1 << 26
"""Of one direction of a link: a peer that leaves more than this unread is given up."""
READ_BYTES = 1 << 18

_LENGTH_BYTES = 4
SIGN_OF_LIFE = bytes(_LENGTH_BYTES)


def framed(content: bytes) -> bytes:
    """The frame of `content`."""
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content


class FrameReader:
    """Puts frames together from the pieces that a stream comes in."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: memoryview) -> list[bytes]:
        """The contents of the frames that end within `data`, in their order; `data` is the caller's again afterwards.

        Raises:
            ValueError: a frame is longer than any can be.
        """
        pieces: memoryview | bytearray = data
        if self._rest:
            self._rest += data
            pieces = self._rest
        contents: list[bytes] = []
        at = 0
        while len(pieces) - at >= _LENGTH_BYTES:
            begin = at + _LENGTH_BYTES
            end = begin + int.from_bytes(pieces[at:begin], "big")
            if end - begin > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {end - begin} bytes")
            if end > len(pieces):
                break
            contents.append(bytes(pieces[begin:end]))
            at = end
        if pieces is data:
            self._rest += data[at:]
        else:
            del self._rest[:at]
        return contents
