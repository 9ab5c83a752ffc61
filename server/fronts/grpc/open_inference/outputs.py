"""Outputs of a response: which are wanted, and their tensors.

A tensor has a row for each text of the batch, [batch] or [batch, 1] as the texts came. With several hypotheses it is
[batch, hypotheses]. Outputs of tokens have a dimension more, of alternatives two. What is shorter than the longest is
filled up: "" for texts, -1 for whole numbers, not-a-number for others.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from dragoman.inference.grpc_service_pb2 import ModelInferRequest
from dragoman.server.decoding.hypothesis import FinishReason, TokenScore, perplexity
from dragoman.server.errors import AnswerTooLarge, FieldViolation, shown
from dragoman.server.fronts.grpc.open_inference.tensors import Datatype, Tensor
from dragoman.server.requests.calls import Answer, OutputTokens, Scored, TextAnswer
from dragoman.server.requests.options import Options
from dragoman.server.requests.pace import Pace

__all__ = ["DEFAULT_OUTPUTS", "OUTPUTS", "Wanted", "answer_tensors", "score_tensors", "wanted_outputs"]

Kind: TypeAlias = Literal["text", "tokens", "alternatives"]
"""The thing that a value belongs to: a text, one of its tokens, or one of the alternatives of a token."""

_FINISH_REASONS = {reason: reason.name.lower() for reason in FinishReason}
_FILL: Mapping[Datatype, str | int | float] = {"BYTES": "", "INT32": -1, "FP32": math.nan}
_VALUE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Output:
    """One output: its datatype, and what its values belong to."""

    datatype: Datatype
    kind: Kind = "text"


OUTPUTS: Mapping[str, Output] = {
    "text": Output("BYTES"),
    "finish_reason": Output("BYTES"),
    "score": Output("FP32"),
    "log_probability": Output("FP32"),
    "num_input_tokens": Output("INT32"),
    "num_output_tokens": Output("INT32"),
    "tokens": Output("INT32", "tokens"),
    "perplexity": Output("FP32"),
    "token_log_probabilities": Output("FP32", "tokens"),
    "alignment": Output("INT32", "tokens"),
    "alternative_tokens": Output("INT32", "alternatives"),
    "alternative_log_probabilities": Output("FP32", "alternatives"),
}

DEFAULT_OUTPUTS = (
    "text",
    "finish_reason",
    "score",
    "log_probability",
    "num_input_tokens",
    "num_output_tokens",
    "tokens",
)
"""The outputs of a request that names none; options add those that they are for."""
_SCORING_OUTPUTS = ("log_probability", "perplexity", "tokens", "token_log_probabilities")
_ALTERNATIVES = ("alternative_tokens", "alternative_log_probabilities")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The outputs of a response, in their order, and how many alternatives a token has."""

    names: tuple[str, ...]
    num_alternatives: int = 0

    def options(self, options: Options) -> Options:
        """Returns `options` with what the outputs need."""
        if "alignment" in self.names and not options.alignment:
            options = dataclasses.replace(options, alignment=True)
        if "token_log_probabilities" in self.names and options.num_alternatives is None:
            options = dataclasses.replace(options, num_alternatives=0)
        return options


def wanted_outputs(
    requested: Sequence[ModelInferRequest.InferRequestedOutputTensor], options: Options, *, scores: bool
) -> tuple[Wanted, list[FieldViolation]]:
    """Returns the outputs that a request names, or else those that belong to its options, and what is wrong."""
    num_alternatives = options.num_alternatives or 0
    if not requested:
        return Wanted(tuple(_default_names(options, scores=scores)), num_alternatives), []
    names: list[str] = []
    violations = []
    for output in requested[: len(OUTPUTS) + 1]:  # one more than there are
        if description := _fault(output, names, num_alternatives, scores=scores):
            violations.append(FieldViolation(f"outputs[{shown(output.name)}]", description))
        names.append(output.name)
    return Wanted(tuple(names), num_alternatives), violations


def _default_names(options: Options, *, scores: bool) -> Iterable[str]:
    if scores:
        yield from _SCORING_OUTPUTS
    else:
        yield from DEFAULT_OUTPUTS
        if options.num_alternatives is not None:
            yield "token_log_probabilities"
        if options.alignment:
            yield "alignment"
    if options.num_alternatives:
        yield from _ALTERNATIVES


def _fault(
    output: ModelInferRequest.InferRequestedOutputTensor,
    before: Sequence[str],
    num_alternatives: int,
    *,
    scores: bool,
) -> str:
    """Returns what is wrong with a requested output, or ""."""
    of_scoring = (*_SCORING_OUTPUTS, *_ALTERNATIVES)
    there_are = of_scoring if scores else tuple(OUTPUTS)
    if output.name not in there_are:
        return f"is unknown; there are {', '.join(there_are)}"
    if output.name in before:
        return "is named a second time"
    if output.parameters:
        return f"has the parameter {shown(min(output.parameters))}; no output has any"
    if output.name in _ALTERNATIVES and not num_alternatives:
        return "needs the parameter num_alternatives"
    return ""


async def answer_tensors(
    answers: Sequence[Answer], wanted: Wanted, shape: Sequence[int], max_bytes: int | None
) -> list[Tensor]:
    """Returns the tensors of answers; `shape` is that of a value for each text.

    Raises:
        AnswerTooLarge: they have more than `max_bytes`.
    """
    num_columns = math.prod(shape) // len(answers)
    rows: list[TextAnswer | None] = []
    for answer in answers:
        rows += answer.texts[:num_columns]
        rows += [None] * (num_columns - len(answer.texts))
    inputs = [answer for answer in answers for _ in range(num_columns)]
    values: dict[str, Callable[[], Sequence[Any]]] = {
        "text": lambda: [row.text if row else "" for row in rows],
        "finish_reason": lambda: [_FINISH_REASONS[row.finish_reason] if row else "" for row in rows],
        "score": lambda: [row.score if row else math.nan for row in rows],
        "log_probability": lambda: [row.log_probability if row else math.nan for row in rows],
        "perplexity": lambda: [
            perplexity(row.log_probability, row.num_output_tokens) if row else math.nan for row in rows
        ],
        "num_input_tokens": lambda: [answer.num_input_tokens for answer in inputs],
        "num_output_tokens": lambda: [row.num_output_tokens if row else -1 for row in rows],
    }
    tokens = _Tokens([row.tokens if row else None for row in rows], wanted, max_bytes)
    return await _tensors(values, tokens, wanted, shape)


async def score_tensors(
    scores: Sequence[Scored], wanted: Wanted, shape: Sequence[int], max_bytes: int | None
) -> list[Tensor]:
    """As `answer_tensors`, of scores."""
    values: dict[str, Callable[[], Sequence[Any]]] = {
        "log_probability": lambda: [score.log_probability for score in scores],
        "perplexity": lambda: [score.perplexity for score in scores],
    }
    return await _tensors(
        values, _Tokens([score.tokens for score in scores], wanted, max_bytes), wanted, shape
    )


async def _tensors(
    values: Mapping[str, Callable[[], Sequence[Any]]], tokens: "_Tokens", wanted: Wanted, shape: Sequence[int]
) -> list[Tensor]:
    pace = Pace()
    tensors = []
    for name in wanted.names:
        datatype = OUTPUTS[name].datatype
        if make := values.get(name):
            tensors.append(Tensor(name, datatype, shape, make()))
        else:
            more, of_tokens = await tokens.values(name, pace)
            tensors.append(Tensor(name, datatype, (*shape, *more), of_tokens))
        await pace()
    return tensors


class _Tokens:
    """The tokens of texts: each output of them has as many places for each text as the longest one has tokens."""

    def __init__(self, texts: Sequence[Any], wanted: Wanted, max_bytes: int | None) -> None:
        self._texts = texts
        self._wanted = wanted
        self._max_bytes = max_bytes

    async def values(self, name: str, pace: Pace) -> tuple[tuple[int, ...], list[Any]]:
        """Returns an output's further dimensions, and its values."""
        output = OUTPUTS[name]
        fill = _FILL[output.datatype]
        width = self._wanted.num_alternatives if output.kind == "alternatives" else 1
        rows = []
        for tokens in self._texts:
            rows.append(_of_tokens(name, tokens, width) if tokens else [])
            await pace()
        longest = max(map(len, rows))
        if self._max_bytes is not None and len(rows) * longest * _VALUE_BYTES > self._max_bytes:
            raise AnswerTooLarge(self._max_bytes)
        values: list[Any] = []
        for row in rows:
            values += row
            values += [fill] * (longest - len(row))
            await pace()
        if output.kind == "alternatives":
            return (longest // width, width), values
        return (longest,), values


def _of_tokens(name: str, tokens: OutputTokens, width: int) -> list[Any]:
    if name == "tokens":
        return list(tokens.ids)
    if name == "token_log_probabilities":
        return [token.log_probability for token, _ in tokens.scores]
    if name == "alignment":
        return [-1 if source_index is None else source_index for _, source_index in tokens.scores]
    column = 0 if name == "alternative_tokens" else 1
    return [value for token, _ in tokens.scores for value in _alternatives(token, column, width)]


def _alternatives(token: TokenScore, column: int, width: int) -> list[Any]:
    fill = -1 if column == 0 else math.nan
    values = [alternative[column] for alternative in token.alternatives]
    return values + [fill] * (width - len(values))
