"""Damage to bytes, from a seed."""

import random

__all__ = ["mutated"]

_PIECES = (
    b"\0",
    b"\xff",
    b"\x80" * 10,
    b"\x0a\x00",
    b"\x1a\x00" * 50,
    b"\xf0\x9f\x98\x80",
    b"\xed\xa0\x80",
    b"\x7f",
)


def mutated(content: bytes, rng: random.Random, most_changes: int = 4) -> bytes:
    """`content` with some bytes changed, cut out, repeated or put in."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, most_changes)):
        place = rng.randrange(len(damaged) + 1)
        match rng.randrange(5):
            case 0 if place < len(damaged):
                damaged[place] = rng.randrange(256)
            case 1:
                del damaged[place : place + rng.randrange(1, 9)]
            case 2:
                damaged[place:place] = rng.choice(_PIECES)
            case 3:
                damaged[place:place] = damaged[place : place + rng.randrange(1, 30)] * rng.randrange(1, 5)
            case _:
                damaged[place:place] = rng.randbytes(rng.randrange(1, 9))
    return bytes(damaged)
