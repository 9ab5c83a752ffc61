"""The rules for a call's options: every broken rule becomes a field violation, all of them at once."""

import ctypes
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dragoman.server.errors import FieldViolation

__all__ = [
    "DEFAULT_OPTIONS",
    "MAX_STOP_STRINGS",
    "MAX_SUPPRESSED_TEXTS",
    "MAX_SUPPRESSED_TOKENS",
    "Abilities",
    "Options",
    "Room",
    "check_options",
]

MAX_TEMPERATURE = 100.0
MAX_STOP_STRINGS = 16
MAX_TEXT_CHARACTERS = 256
MAX_SUPPRESSED_TEXTS = 64
MAX_SUPPRESSED_TOKENS = 1024
MAX_BEAM_SIZE = 64
MAX_SAMPLES = 64
MAX_PATIENCE = 8.0
MAX_PENALTY = 10.0
MAX_ALTERNATIVES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to decode, as a caller said it; None is left out."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    beam_size: int | None = None
    num_hypotheses: int | None = None
    length_penalty: float | None = None
    coverage_penalty: float | None = None
    patience: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    suppressed_texts: Sequence[str] = ()
    suppressed_token_ids: Sequence[int] = ()
    num_alternatives: int | None = None
    alignment: bool = False

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are drawn rather than the most probable taken."""
        return self.temperature is not None and self.temperature > 0

    @property
    def searches(self) -> bool:
        """Whether several hypotheses are pursued at the same time."""
        return self.beam_size is not None and self.beam_size > 1


DEFAULT_OPTIONS = Options()
"""The options of the many calls that set none. They break no rule, so they are not looked at."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many output tokens an answer may have.

    Attributes:
        limit: the model's own limit; asking for more is a mistake.
        left: what the input leaves of it; asking for more is cut to this.
    """

    limit: int
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """The abilities of the model that is called.

    Attributes:
        vocabulary_size: token ids are below this.
        max_beam_size: rows that one input may have.
        aligns: whether it has a source to look at and the graph `align`.
        lacks_alignment: why not, where it does not.
    """

    vocabulary_size: int
    max_beam_size: int
    aligns: bool
    lacks_alignment: str = ""


def check_options(options: Options, room: Room, abilities: Abilities) -> list[FieldViolation]:
    """All rules that `options` breaks for an input that leaves `room`."""
    return [
        FieldViolation(f"options.{field}", description)
        for rules in (
            _length_rules(options, room),
            _sampling_rules(options),
            _search_rules(options, abilities),
            _penalty_rules(options, abilities),
            _text_rules("stop", options.stop, MAX_STOP_STRINGS),
            _text_rules("suppressed_texts", options.suppressed_texts, MAX_SUPPRESSED_TEXTS),
            _token_rules(options, abilities),
        )
        for field, description in rules
    ]


Rules = Iterator[tuple[str, str]]
"""Broken ones: a field's name under options, and what is wrong with its value."""


def _length_rules(options: Options, room: Room) -> Rules:
    most = room.left
    if options.max_tokens is not None:
        if not 1 <= options.max_tokens <= room.limit:
            yield "max_tokens", f"{options.max_tokens} is not between 1 and {room.limit}, the model's limit"
        else:
            most = min(most, options.max_tokens)
    if (options.min_tokens or 0) > most:
        yield "min_tokens", f"{options.min_tokens} is more than {most}, the most there can be"


def _sampling_rules(options: Options) -> Rules:
    temperature = options.temperature
    if temperature is not None and not _within(temperature, 0, MAX_TEMPERATURE):
        yield "temperature", f"{_number(temperature)} is not between 0 and {MAX_TEMPERATURE:g}"
    elif not options.is_sampled:
        for field in ("top_k", "top_p", "seed"):
            value = getattr(options, field)
            if value is not None:
                yield field, f"{_number(value)} has no meaning without a temperature above 0"
    if options.top_p is not None and not 0 < options.top_p <= 1:
        yield "top_p", f"{_number(options.top_p)} is not above 0 and at most 1"


def _search_rules(options: Options, abilities: Abilities) -> Rules:
    most_beams = min(MAX_BEAM_SIZE, abilities.max_beam_size)
    if options.beam_size is not None and not 1 <= options.beam_size <= most_beams:
        yield "beam_size", f"{options.beam_size} is not between 1 and {most_beams}, the server's limit"
    elif options.searches and options.is_sampled:
        yield "beam_size", f"{options.beam_size} has no meaning with a temperature above 0"
    patience = 1.0 if options.patience is None else options.patience
    if not (0 < patience <= MAX_PATIENCE):
        yield "patience", f"{_number(patience)} is not above 0 and at most {MAX_PATIENCE:g}"
        return
    if not options.searches:
        for field in ("patience", "coverage_penalty"):
            if (value := getattr(options, field)) is not None:
                yield field, f"{_number(value)} has no meaning without a beam_size above 1"
    yield from _hypotheses_rules(options, patience)


def _hypotheses_rules(options: Options, patience: float) -> Rules:
    if options.num_hypotheses is None:
        return
    if options.is_sampled:
        most, why = MAX_SAMPLES, "the server's limit"
    elif options.searches:
        most, why = max(1, round((options.beam_size or 1) * patience)), "beam_size * patience"
    else:
        most, why = 1, "all there is without a beam_size above 1 or a temperature above 0"
    if not 1 <= options.num_hypotheses <= most:
        yield "num_hypotheses", f"{options.num_hypotheses} is not between 1 and {most}, {why}"


def _penalty_rules(options: Options, abilities: Abilities) -> Rules:
    length, coverage = options.length_penalty, options.coverage_penalty
    repetition = options.repetition_penalty
    if length is not None and not _within(length, -MAX_PENALTY, MAX_PENALTY):
        yield "length_penalty", f"{_number(length)} is not between -{MAX_PENALTY:g} and {MAX_PENALTY:g}"
    if coverage is not None and not _within(coverage, 0, MAX_PENALTY):
        yield "coverage_penalty", f"{_number(coverage)} is not between 0 and {MAX_PENALTY:g}"
    if repetition is not None and not (0 < repetition <= MAX_PENALTY):
        yield "repetition_penalty", f"{_number(repetition)} is not above 0 and at most {MAX_PENALTY:g}"
    if not abilities.aligns:
        if coverage:
            yield "coverage_penalty", f"{_number(coverage)} needs alignments: {abilities.lacks_alignment}"
        if options.alignment:
            yield "alignment", f"true cannot be had: {abilities.lacks_alignment}"


def _text_rules(field: str, texts: Sequence[str], most: int) -> Rules:
    if len(texts) > most:
        yield field, f"{len(texts)} strings are more than {most}"
    for index, text in enumerate(texts[:most]):
        if not text:
            yield f"{field}[{index}]", "is empty"
        elif len(text) > MAX_TEXT_CHARACTERS:
            yield f"{field}[{index}]", f"{len(text)} characters are more than {MAX_TEXT_CHARACTERS}"


def _token_rules(options: Options, abilities: Abilities) -> Rules:
    suppressed, alternatives = options.suppressed_token_ids, options.num_alternatives
    if len(suppressed) > MAX_SUPPRESSED_TOKENS:
        yield "suppressed_token_ids", f"{len(suppressed)} tokens are more than {MAX_SUPPRESSED_TOKENS}"
    for index, token_id in enumerate(suppressed[:MAX_SUPPRESSED_TOKENS]):
        if token_id >= abilities.vocabulary_size:
            yield (
                f"suppressed_token_ids[{index}]",
                f"{token_id} is not below {abilities.vocabulary_size}, the vocabulary's size",
            )
    if alternatives is not None and alternatives > MAX_ALTERNATIVES:
        yield "num_alternatives", f"{alternatives} is more than {MAX_ALTERNATIVES}"


def _within(value: float, least: float, most: float) -> bool:
    return math.isfinite(value) and least <= value <= most


def _number(value: float) -> str:
    # The shortest number that is this float32 of the wire: 0.9, not 0.8999999761581421, nor 1 for 1.0000001.
    if isinstance(value, int) or not math.isfinite(single := ctypes.c_float(value).value):
        return str(value)
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    shortest = next(each for each in candidates if ctypes.c_float(each).value == single)
    return repr(shortest).removesuffix(".0")
