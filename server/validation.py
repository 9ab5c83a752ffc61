"""What a call may ask for: every broken rule becomes a field violation, all of them at once."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from server.errors import FieldViolation
from server.sampling import DecodingParameters

__all__ = ["MAX_STOP_STRINGS", "Options", "Room", "check_options", "decoding_parameters"]

MAX_TEMPERATURE = 100.0
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
SEED_BITS = 64


@dataclass(frozen=True, slots=True)
class Options:
    """How to decode, as a caller said it; None is left out."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are drawn rather than the most probable taken."""
        return self.temperature is not None and self.temperature > 0


@dataclass(frozen=True, slots=True)
class Room:
    """How many output tokens an answer may have.

    Attributes:
        limit: the model's own limit; asking for more is a mistake.
        left: what the input leaves of it; asking for more is cut to this.
    """

    limit: int
    left: int


def check_options(options: Options, room: Room) -> list[FieldViolation]:
    """All rules that `options` breaks for an input that leaves `room`."""
    return [
        FieldViolation(f"options.{field}", description)
        for field, description in (
            *_length_rules(options, room),
            *_sampling_rules(options),
            *_stop_rules(options),
        )
    ]


def decoding_parameters(options: Options, room: Room, index: int) -> DecodingParameters:
    """What the engine gets for input number `index`; `options` break no rule.

    A given seed is the first input's and the next one's is one more: equal texts in a call differ.
    """
    seed = secrets.randbits(SEED_BITS) if options.seed is None else (options.seed + index) % 2**SEED_BITS
    return DecodingParameters(
        max_tokens=min(room.limit if options.max_tokens is None else options.max_tokens, room.left),
        min_tokens=options.min_tokens or 0,
        temperature=options.temperature or 0.0,
        top_k=options.top_k or 0,
        top_p=1.0 if options.top_p is None else options.top_p,
        seed=seed if options.is_sampled else 0,
    )


Rule = tuple[str, str]
"""A field's name under options, and what is wrong with its value."""


def _length_rules(options: Options, room: Room) -> Sequence[Rule]:
    broken: list[Rule] = []
    most = room.left
    if options.max_tokens is not None:
        if not 1 <= options.max_tokens <= room.limit:
            broken.append(
                ("max_tokens", f"{options.max_tokens} is not between 1 and {room.limit}, the model's limit")
            )
        else:
            most = min(most, options.max_tokens)
    if (options.min_tokens or 0) > most:
        broken.append(("min_tokens", f"{options.min_tokens} is more than {most}, the most there can be"))
    return broken


def _sampling_rules(options: Options) -> Sequence[Rule]:
    broken: list[Rule] = []
    temperature = options.temperature
    if temperature is not None and not (math.isfinite(temperature) and 0 <= temperature <= MAX_TEMPERATURE):
        broken.append(("temperature", f"{_number(temperature)} is not between 0 and {MAX_TEMPERATURE:g}"))
    elif not options.is_sampled:
        for field in ("top_k", "top_p", "seed"):
            value = getattr(options, field)
            if value is not None:
                broken.append((field, f"{_number(value)} has no meaning without a temperature above 0"))
    if options.top_p is not None and not 0 < options.top_p <= 1:
        broken.append(("top_p", f"{_number(options.top_p)} is not above 0 and at most 1"))
    return broken


def _stop_rules(options: Options) -> Sequence[Rule]:
    broken: list[Rule] = []
    if len(options.stop) > MAX_STOP_STRINGS:
        broken.append(("stop", f"{len(options.stop)} strings are more than {MAX_STOP_STRINGS}"))
    for index, stop in enumerate(options.stop[:MAX_STOP_STRINGS]):
        if not stop:
            broken.append((f"stop[{index}]", "is empty"))
        elif len(stop) > MAX_STOP_CHARACTERS:
            broken.append((f"stop[{index}]", f"{len(stop)} characters are more than {MAX_STOP_CHARACTERS}"))
    return broken


def _number(value: float) -> str:
    # A float32 of the wire as its sender wrote it: 0.9, not 0.8999999761581421.
    return str(value) if isinstance(value, int) else f"{value:g}"
