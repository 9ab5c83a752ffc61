"""From a call to what the engine gets: every rule checked, every text tokenised.

A call is refused as a whole, once, with all that is wrong with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.errors import FieldViolation, InvalidRequest
from dragoman.server.models.served_model import ServedModel
from dragoman.server.requests.admission import Size
from dragoman.server.requests.answer_room import least_bytes
from dragoman.server.requests.calls import Call, ScoringCall
from dragoman.server.requests.current_call import current_priority, current_record
from dragoman.server.requests.option_texts import (
    check_option_texts,
    check_prefixes,
    stop_strings,
    suppressed_texts,
)
from dragoman.server.requests.options import DEFAULT_OPTIONS, Options, Room, check_options
from dragoman.server.requests.parameters import decoding_parameters, most_tokens
from dragoman.server.requests.text_rules import (
    abilities_of,
    check_inputs,
    check_prefix_lengths,
    check_scored_texts,
    check_task,
    most_input_tokens,
    room_for_output,
    too_long,
)
from dragoman.server.requests.tokenization import Tokenising

__all__ = ["CallLimits", "PreparedInput", "prepare", "prepare_scoring"]


@dataclass(frozen=True, slots=True)
class CallLimits:
    """The limits of a call: so many inputs, and an answer of so many bytes; None: of any size."""

    max_inputs: int
    max_message_bytes: int | None


@dataclass(frozen=True, slots=True)
class PreparedInput:
    """An input that breaks no rule: its tokens, and how each of the sequences that answer it is decoded."""

    token_ids: Sequence[int]
    parameters: tuple[DecodingParameters, ...]


async def prepare(
    model: ServedModel, call: Call, limits: CallLimits, tokenising: Tokenising
) -> list[PreparedInput]:
    """Make inputs of a call's texts.

    Raises:
        InvalidRequest: naming every rule that is broken.
        Overloaded: too many texts wait to be tokenised, or too many sequences for a slot, or there is no time to wait.
        DeadlineExceeded: the deadline passed before they were.
    """
    check_task(model, call.task)
    options = call.options
    if violations := check_inputs(model, call, limits.max_inputs):
        # Too many, empty or endless texts are not worth tokenising.
        raise InvalidRequest([*violations, *_check_options(model, options, room_for_output(model, 0))])
    _check_room(model, call, call.inputs, _rows_per_input(options))
    encoded = await tokenising.encode(model.tokenizer, call.inputs, deadline_s=call.deadline_s)
    prefixes: Sequence[Sequence[int]] = [()] * len(encoded)
    if call.prefixes:
        prefixes = await tokenising.encode(
            model.tokenizer, call.prefixes, bare=True, deadline_s=call.deadline_s
        )
    for index, token_ids in enumerate(encoded):
        violations += too_long("inputs", index, len(token_ids), model.max_input_tokens)
    longest = min(max(len(token_ids) for token_ids in encoded), model.max_input_tokens)
    room = room_for_output(model, longest)
    broken_options = _check_options(model, options, room)
    violations += broken_options
    violations += check_prefix_lengths(prefixes, most_tokens(options, room))
    if not broken_options:  # or there may be any number of texts, of any length
        violations += check_option_texts(model, options)
        violations += check_prefixes(model, options, call.prefixes, prefixes[: len(call.prefixes)])
    if violations:
        raise InvalidRequest(violations)
    prepared = _with_parameters(model, options, encoded, prefixes)
    _check_rows(model, prepared)
    _check_size(model, "inputs", prepared, limits)
    return prepared


def _check_options(model: ServedModel, options: Options, room: Room) -> list[FieldViolation]:
    return [] if options is DEFAULT_OPTIONS else check_options(options, room, abilities_of(model))


def _with_parameters(
    model: ServedModel, options: Options, encoded: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
) -> list[PreparedInput]:
    stop, suppressed = stop_strings(model, options), suppressed_texts(model, options)
    return [
        PreparedInput(
            token_ids,
            decoding_parameters(
                options,
                room_for_output(model, len(token_ids)),
                index,
                prefix=tuple(prefixes[index]),
                stop=stop,
                suppressed_texts=suppressed,
            ),
        )
        for index, token_ids in enumerate(encoded)
    ]


async def prepare_scoring(
    model: ServedModel, call: ScoringCall, limits: CallLimits, tokenising: Tokenising
) -> list[PreparedInput]:
    """Make inputs whose whole output is given: scoring is decoding with nothing left to choose.

    Raises:
        InvalidRequest: naming every rule that is broken.
        Overloaded: too many texts wait to be tokenised, or too many sequences for a slot, or there is no time to wait.
        DeadlineExceeded: the deadline passed before they were.
    """
    check_task(model, call.task)
    if violations := check_scored_texts(model, call, limits.max_inputs):
        raise InvalidRequest(violations)
    _check_room(model, call, call.sources if model.manifest.facts.has_source else ("",) * len(call.texts), 1)
    sources, outputs = await _encode_scored(model, call, tokenising)
    for index, (source, output) in enumerate(zip(sources, outputs, strict=True)):
        for field, tokens, limit in (
            ("sources", source, model.max_input_tokens),
            ("texts", output, room_for_output(model, len(source)).left),
        ):
            violations += too_long(field, index, len(tokens), limit)
            if not tokens:
                violations.append(FieldViolation(f"{field}[{index}]", "holds no token"))
    if violations:
        raise InvalidRequest(violations)
    prepared = [
        PreparedInput(
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


async def _encode_scored(
    model: ServedModel, call: ScoringCall, tokenising: Tokenising
) -> tuple[list[Sequence[int]], list[tuple[int, ...]]]:
    """Returns the tokens of each source and of each output that is scored."""
    has_source = model.manifest.facts.has_source
    texts = await tokenising.encode(model.tokenizer, call.texts, bare=has_source, deadline_s=call.deadline_s)
    if not has_source:  # a text of a language model begins with the begin token
        return [text[:1] for text in texts], [tuple(text[1:]) for text in texts]
    sources = await tokenising.encode(model.tokenizer, call.sources, deadline_s=call.deadline_s)
    return sources, [(*text, model.manifest.special_tokens.end) for text in texts]


def _rows_per_input(options: Options) -> int:
    return max(1, (options.num_hypotheses if options.is_sampled else options.beam_size) or 1)


def _check_room(
    model: ServedModel, call: Call | ScoringCall, inputs: Sequence[str], rows_per_input: int
) -> None:
    """Refuse a call that there is no time or no room for before its texts are tokenised.

    A call that needs more rows than there are breaks a rule: `_check_rows` refuses it later.
    """
    num_rows = len(inputs) * rows_per_input
    num_tokens = rows_per_input * sum(most_input_tokens(model, text) for text in inputs)
    client, priority = "", current_priority(call.priority)
    can_run = num_rows <= model.engine.max_rows
    if (record := current_record()) is not None:
        # What can never run is no load: a caller could claim any number of rows, and all others would be refused.
        size = Size(num_rows, num_tokens) if can_run else Size(0, 0)
        record.begin_answer(size, priority, deadline_s=call.deadline_s)
        client = record.caller.identity
    if can_run:
        model.engine.check_room(num_rows, num_tokens, client=client, priority=priority)


def _check_rows(model: ServedModel, prepared: Sequence[PreparedInput]) -> None:
    """Refuse what the queue never has room for: were it refused as overload, a client would try again for ever.

    Raises:
        InvalidRequest: the call needs more rows than there are.
    """
    num_rows = sum(parameters.beam_size for each in prepared for parameters in each.parameters)
    if num_rows > (most := model.engine.max_rows):
        description = (
            f"{len(prepared)} with {num_rows} hypotheses in all are more than {most}, the server's limit"
        )
        raise InvalidRequest([FieldViolation("inputs", description)])


def _check_size(
    model: ServedModel, field: str, prepared: Sequence[PreparedInput], limits: CallLimits
) -> None:
    """Refuse what is never answered: its answer would be too large, whatever the model makes of it.

    Raises:
        InvalidRequest: the answer has more bytes at the least than a message may have.
    """
    if limits.max_message_bytes is None:
        return
    vocabulary_size = model.manifest.dimensions.vocabulary_size
    num_bytes = sum(
        least_bytes(parameters, vocabulary_size) for each in prepared for parameters in each.parameters
    )
    if num_bytes > limits.max_message_bytes:
        num_hypotheses = sum(parameters.num_hypotheses for each in prepared for parameters in each.parameters)
        num_alternatives = prepared[0].parameters[0].num_alternatives or 0
        description = (
            f"{len(prepared)} with {num_hypotheses} hypotheses in all and {num_alternatives} alternatives to each "
            f"token make an answer of at least {num_bytes} bytes, more than {limits.max_message_bytes}, the "
            "server's limit"
        )
        raise InvalidRequest([FieldViolation(field, description)])
