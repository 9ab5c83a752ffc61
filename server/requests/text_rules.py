"""The rules for a call's texts: they need the model, and are checked before the engine has anything of the call."""

from collections.abc import Iterator, Sequence

from dragoman.common.text import clean_text, is_blank
from dragoman.server.errors import FieldViolation, InvalidRequest
from dragoman.server.models.served_model import ServedModel
from dragoman.server.requests.calls import Call, ScoringCall
from dragoman.server.requests.options import MAX_ALTERNATIVES, Abilities, Room

__all__ = [
    "abilities_of",
    "check_inputs",
    "check_prefix_lengths",
    "check_scored_texts",
    "check_task",
    "most_input_tokens",
    "room_for_output",
    "too_long",
]


def check_task(model: ServedModel, task: str) -> None:
    """Check that the model does what the called service is for.

    Raises:
        InvalidRequest: it does something else.
    """
    if model.manifest.task != task:
        description = f"{model.name!r} is a {model.manifest.task} model, not for {task}"
        raise InvalidRequest([FieldViolation("model", description)])


def check_inputs(model: ServedModel, call: Call, max_inputs: int) -> list[FieldViolation]:
    """Returns what is wrong with inputs and prefixes before they are tokenised."""
    if not call.inputs:
        return [FieldViolation("inputs", "is empty: there is nothing to answer")]
    if violations := _too_many("inputs", len(call.inputs), max_inputs):
        return violations
    may_be_blank = model.manifest.facts.takes_blank_inputs
    for index, text in enumerate(call.inputs):
        path = f"inputs[{index}]"
        violations += _check_text(model, path, text, model.max_input_tokens, may_be_blank=may_be_blank)
    if call.prefixes and len(call.prefixes) != len(call.inputs):
        description = f"{len(call.prefixes)} prefixes do not belong to {len(call.inputs)} inputs"
        return [*violations, FieldViolation("prefixes", description)]
    for index, prefix in enumerate(call.prefixes):
        path, limit = f"prefixes[{index}]", model.manifest.limits.max_output_tokens
        violations += _check_text(model, path, prefix, limit, may_be_blank=True, may_be_empty=True)
    return violations


def check_scored_texts(model: ServedModel, call: ScoringCall, max_inputs: int) -> list[FieldViolation]:
    """Returns what is wrong with sources and texts before they are tokenised."""
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
        description = f"{call.num_alternatives} is more than {MAX_ALTERNATIVES}"
        violations.append(FieldViolation("num_alternatives", description))
    return violations


def most_input_tokens(model: ServedModel, text: str) -> int:
    """Returns how many tokens an input has at most, before it is tokenised: one for each byte, and two special ones.

    A tokenizer that writes one character as several may make more. The queue counts the tokens that there are.
    """
    return min(len(text.encode(errors="replace")) + 2, model.max_input_tokens)


def too_long(field: str, index: int, num_tokens: int, limit: int) -> Iterator[FieldViolation]:
    """Yields that element `index` of `field` has more than `limit` tokens, where it has."""
    if num_tokens > limit:
        description = f"{num_tokens} tokens are more than {limit}, the model's limit"
        yield FieldViolation(f"{field}[{index}]", description)


def check_prefix_lengths(prefixes: Sequence[Sequence[int]], most_tokens: int) -> list[FieldViolation]:
    """Returns which prefixes leave no token of the `most_tokens` that an answer may have."""
    return [
        FieldViolation(
            f"prefixes[{index}]",
            f"{len(prefix)} tokens leave nothing of {most_tokens}, the most there can be",
        )
        for index, prefix in enumerate(prefixes)
        if prefix and len(prefix) >= most_tokens
    ]


def room_for_output(model: ServedModel, num_input_tokens: int) -> Room:
    """Returns how many tokens an answer may have to an input of `num_input_tokens`."""
    limits = model.manifest.limits
    if model.manifest.facts.has_source:
        return Room(limits.max_output_tokens, limits.max_output_tokens)
    left = limits.max_context_tokens - num_input_tokens
    return Room(limits.max_output_tokens, min(limits.max_output_tokens, left))


def abilities_of(model: ServedModel) -> Abilities:
    """Returns what the model can do with options."""
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
    """Yields what is wrong with a text before it is tokenised, which takes a microsecond a character."""
    if len(text) > (most := max_tokens * model.max_characters_per_token):
        description = f"{len(text)} characters are more than {most}: the model's limit is {max_tokens} tokens"
        yield FieldViolation(path, description)
    elif not may_be_empty and is_blank(text) and not (may_be_blank and clean_text(text)):
        yield FieldViolation(path, "is empty")
