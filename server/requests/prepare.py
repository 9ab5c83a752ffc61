"""From a call to what the engine gets: every rule checked, every text tokenised.

A call is refused as a whole, once, with all that is wrong with it.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dragoman.common.text import clean_text, is_blank
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.errors import FieldViolation, InvalidRequest
from dragoman.server.models.served_model import ServedModel
from dragoman.server.requests.answer_room import least_bytes
from dragoman.server.requests.calls import Call, ScoringCall
from dragoman.server.requests.option_texts import (
    check_option_texts,
    check_prefixes,
    stop_strings,
    suppressed_texts,
)
from dragoman.server.requests.options import MAX_ALTERNATIVES, Abilities, Options, Room, check_options
from dragoman.server.requests.tokenization import Tokenising

__all__ = ["CallLimits", "Prepared", "decoding_parameters", "prepare", "prepare_scoring"]

_SEED_BITS = 64


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What a call may ask for: so many inputs, and an answer of so many bytes; None: of any size."""

    max_inputs: int
    max_message_bytes: int | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """An input that breaks no rule: its tokens, and how each of the sequences that answer it is decoded."""

    token_ids: Sequence[int]
    parameters: tuple[DecodingParameters, ...]


async def prepare(
    model: ServedModel, call: Call, limits: CallLimits, tokenising: Tokenising
) -> list[Prepared]:
    """Make inputs of a call's texts.

    Raises:
        InvalidRequest: naming every rule that is broken.
        Overloaded: too many texts wait to be tokenised.
        DeadlineExceeded: the deadline passed before they were.
    """
    _check_task(model, call.task)
    abilities = _abilities(model)
    violations = _check_texts(model, call, limits.max_inputs)
    if violations:  # too many, empty or endless texts are not worth tokenising
        raise InvalidRequest([*violations, *check_options(call.options, _room(model, 0), abilities)])
    encoded = await tokenising.encode(model.tokenizer, call.inputs, deadline_s=call.deadline_s)
    prefixes: Sequence[Sequence[int]] = [()] * len(encoded)
    if call.prefixes:
        prefixes = await tokenising.encode(
            model.tokenizer, call.prefixes, bare=True, deadline_s=call.deadline_s
        )
    violations = [
        FieldViolation(
            f"inputs[{index}]", f"{len(token_ids)} tokens are more than {limit}, the model's limit"
        )
        for index, token_ids in enumerate(encoded)
        if len(token_ids) > (limit := model.max_input_tokens)
    ]
    longest = min(max(len(token_ids) for token_ids in encoded), model.max_input_tokens)
    broken_options = check_options(call.options, _room(model, longest), abilities)
    violations += broken_options
    violations += _check_prefixes(prefixes, _most_tokens(call.options, _room(model, longest)))
    if not broken_options:  # or there may be any number of texts, of any length
        violations += check_option_texts(model, call.options)
        violations += check_prefixes(model, call.options, call.prefixes, prefixes[: len(call.prefixes)])
    if violations:
        raise InvalidRequest(violations)
    texts = {
        "stop": stop_strings(model, call.options),
        "suppressed_texts": suppressed_texts(model, call.options),
    }
    prepared = [
        Prepared(
            token_ids,
            decoding_parameters(
                call.options,
                _room(model, len(token_ids)),
                index,
                prefix=tuple(prefixes[index]),
                **texts,
            ),
        )
        for index, token_ids in enumerate(encoded)
    ]
    _check_rows(model, prepared)
    _check_size(model, "inputs", prepared, limits)
    return prepared


async def prepare_scoring(
    model: ServedModel, call: ScoringCall, limits: CallLimits, tokenising: Tokenising
) -> list[Prepared]:
    """Make inputs whose whole output is given: scoring is decoding with nothing left to choose.

    Raises:
        InvalidRequest: naming every rule that is broken.
        Overloaded: too many texts wait to be tokenised.
        DeadlineExceeded: the deadline passed before they were.
    """
    _check_task(model, call.task)
    violations = _check_scored_texts(model, call, limits.max_inputs)
    if violations:
        raise InvalidRequest(violations)
    has_source = model.manifest.facts.has_source
    texts = await tokenising.encode(model.tokenizer, call.texts, bare=has_source, deadline_s=call.deadline_s)
    if has_source:
        sources = await tokenising.encode(model.tokenizer, call.sources, deadline_s=call.deadline_s)
        outputs = [(*text, model.manifest.special_tokens.end) for text in texts]
    else:  # a text of a language model begins with the begin token
        sources, outputs = [text[:1] for text in texts], [tuple(text[1:]) for text in texts]
    for index, (source, output) in enumerate(zip(sources, outputs, strict=True)):
        for field, tokens, limit in (
            ("sources", source, model.max_input_tokens),
            ("texts", output, _room(model, len(source)).left),
        ):
            if len(tokens) > limit:
                violations.append(
                    FieldViolation(
                        f"{field}[{index}]", f"{len(tokens)} tokens are more than {limit}, the model's limit"
                    )
                )
            elif not tokens:
                violations.append(FieldViolation(f"{field}[{index}]", "holds no token"))
    if violations:
        raise InvalidRequest(violations)
    prepared = [
        Prepared(
            source,
            (
                DecodingParameters(
                    max_tokens=len(output), prefix=output, num_alternatives=call.num_alternatives
                ),
            ),
        )
        for source, output in zip(sources, outputs, strict=True)
    ]
    _check_size(model, "texts", prepared, limits)
    return prepared


def decoding_parameters(
    options: Options,
    room: Room,
    index: int,
    *,
    prefix: tuple[int, ...] = (),
    stop: tuple[str, ...] = (),
    suppressed_texts: tuple[str, ...] = (),
) -> tuple[DecodingParameters, ...]:
    """What the engine gets for input number `index`, one for each sequence; `options` break no rule.

    A given seed is the first input's and the next one's is one more: equal texts in a call differ.
    """
    seed, num_samples = 0, 1
    if options.is_sampled:
        given_seed = secrets.randbits(_SEED_BITS) if options.seed is None else options.seed + index
        seed, num_samples = given_seed % 2**_SEED_BITS, options.num_hypotheses or 1
    given = {
        name: value
        for name in (
            "min_tokens",
            "temperature",
            "top_k",
            "top_p",
            "beam_size",
            "length_penalty",
            "coverage_penalty",
            "patience",
            "repetition_penalty",
            "no_repeat_ngram_size",
        )
        if (value := getattr(options, name)) is not None
    }
    suppressed_token_ids = tuple(options.suppressed_token_ids)
    return tuple(
        DecodingParameters(
            max_tokens=_most_tokens(options, room),
            seed=seed,
            sample=sample,
            num_hypotheses=1 if options.is_sampled else options.num_hypotheses or 1,
            suppressed_token_ids=suppressed_token_ids,
            suppressed_texts=suppressed_texts,
            stop=stop,
            prefix=prefix,
            num_alternatives=_num_alternatives(options),
            align=options.alignment,
            **given,
        )
        for sample in range(num_samples)
    )


def _num_alternatives(options: Options) -> int | None:
    """Alignments are told token by token."""
    return 0 if options.alignment and options.num_alternatives is None else options.num_alternatives


def _most_tokens(options: Options, room: Room) -> int:
    return min(room.limit if options.max_tokens is None else options.max_tokens, room.left)


def _check_task(model: ServedModel, task: str) -> None:
    if model.manifest.task != task:
        what = f"{model.name!r} is a {model.manifest.task} model, not for {task}"
        raise InvalidRequest([FieldViolation("model", what)])


def _check_texts(model: ServedModel, call: Call, max_inputs: int) -> list[FieldViolation]:
    if not call.inputs:
        return [FieldViolation("inputs", "is empty: there is nothing to answer")]
    if violations := _too_many("inputs", len(call.inputs), max_inputs):
        return violations
    may_be_blank = model.manifest.facts.takes_blank_inputs
    for index, text in enumerate(call.inputs):
        path = f"inputs[{index}]"
        violations += _check_text(model, path, text, model.max_input_tokens, may_be_blank=may_be_blank)
    if call.prefixes and len(call.prefixes) != len(call.inputs):
        what = f"{len(call.prefixes)} prefixes do not belong to {len(call.inputs)} inputs"
        return [*violations, FieldViolation("prefixes", what)]
    for index, prefix in enumerate(call.prefixes):
        path, limit = f"prefixes[{index}]", model.manifest.limits.max_output_tokens
        violations += _check_text(model, path, prefix, limit, may_be_blank=True, may_be_empty=True)
    return violations


def _too_many(field: str, number: int, most: int) -> list[FieldViolation]:
    if number <= most:
        return []
    return [FieldViolation(field, f"{number} are more than {most}, the server's limit")]


def _check_text(
    model: ServedModel,
    path: str,
    text: str,
    max_tokens: int,
    *,
    may_be_blank: bool = False,
    may_be_empty: bool = False,
) -> Iterator[FieldViolation]:
    """What is wrong with a text before it is tokenised, which takes a millionth of a second a character."""
    if len(text) > (most := max_tokens * model.max_characters_per_token):
        what = f"{len(text)} characters are more than {most}: the model's limit is {max_tokens} tokens"
        yield FieldViolation(path, what)
    elif not may_be_empty and is_blank(text) and not (may_be_blank and clean_text(text)):
        yield FieldViolation(path, "is empty")


def _check_rows(model: ServedModel, prepared: Sequence[Prepared]) -> None:
    """Refuse what the queue never has room for: told that it is full, a caller would try again forever."""
    num_rows = sum(parameters.beam_size for each in prepared for parameters in each.parameters)
    if num_rows > (most := model.engine.max_rows):
        what = f"{len(prepared)} with {num_rows} hypotheses in all are more than {most}, the server's limit"
        raise InvalidRequest([FieldViolation("inputs", what)])


def _check_size(model: ServedModel, field: str, prepared: Sequence[Prepared], limits: CallLimits) -> None:
    """Refuse what is never answered: its answer would be too large, whatever the model makes of it."""
    if limits.max_message_bytes is None:
        return
    vocabulary_size = model.manifest.dimensions.vocabulary_size
    num_bytes = sum(
        least_bytes(parameters, vocabulary_size) for each in prepared for parameters in each.parameters
    )
    if num_bytes > limits.max_message_bytes:
        num_hypotheses = sum(parameters.num_hypotheses for each in prepared for parameters in each.parameters)
        num_alternatives = prepared[0].parameters[0].num_alternatives or 0
        what = (
            f"{len(prepared)} with {num_hypotheses} hypotheses in all and {num_alternatives} alternatives to each "
            f"token make an answer of at least {num_bytes} bytes, more than {limits.max_message_bytes}, the "
            "server's limit"
        )
        raise InvalidRequest([FieldViolation(field, what)])


def _check_prefixes(prefixes: Sequence[Sequence[int]], most_tokens: int) -> list[FieldViolation]:
    return [
        FieldViolation(
            f"prefixes[{index}]",
            f"{len(prefix)} tokens leave nothing of {most_tokens}, the most there can be",
        )
        for index, prefix in enumerate(prefixes)
        if prefix and len(prefix) >= most_tokens
    ]


def _check_scored_texts(model: ServedModel, call: ScoringCall, max_inputs: int) -> list[FieldViolation]:
    if not call.texts:
        return [FieldViolation("texts", "is empty: there is nothing to score")]
    if violations := _too_many("texts", len(call.texts), max_inputs):
        return violations
    limits, facts = model.manifest.limits, model.manifest.facts
    for field, texts, limit in (
        ("sources", call.sources, model.max_input_tokens),
        # The first token of a text of a language model is its input.
        ("texts", call.texts, limits.max_output_tokens + (not facts.has_source)),
    ):
        for index, text in enumerate(texts):
            path = f"{field}[{index}]"
            violations += _check_text(model, path, text, limit, may_be_blank=facts.takes_blank_inputs)
    if call.num_alternatives > MAX_ALTERNATIVES:
        what = f"{call.num_alternatives} is more than {MAX_ALTERNATIVES}"
        violations.append(FieldViolation("num_alternatives", what))
    return violations


def _room(model: ServedModel, num_input_tokens: int) -> Room:
    limits = model.manifest.limits
    if model.manifest.facts.has_source:
        return Room(limits.max_output_tokens, limits.max_output_tokens)
    left = limits.max_context_tokens - num_input_tokens
    return Room(limits.max_output_tokens, min(limits.max_output_tokens, left))


def _abilities(model: ServedModel) -> Abilities:
    manifest = model.manifest
    lacks = ""
    if not manifest.facts.has_source:
        lacks = f"{model.name!r} is a {manifest.task} model and has no source to look at"
    elif "align" not in manifest.graphs:
        lacks = f"{model.name!r} was exported without the graph for it; export it again"
    return Abilities(
        vocabulary_size=manifest.dimensions.vocabulary_size,
        max_beam_size=model.engine.facts.slots_per_lane,
        aligns=not lacks,
        lacks_alignment=lacks,
    )
