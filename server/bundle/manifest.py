"""The records of bundle.json, and what their values may be.

The bounds are wider than any model of this project. They keep numbers within what numpy, ONNX Runtime and protobuf
hold, so that a damaged manifest is one line when it is read and nothing later.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dragoman.server.bundle.tasks import FACTS, Task, TaskFacts
from dragoman.server.errors import MAX_SHOWN_CHARACTERS

__all__ = [
    "Dimensions",
    "FileRecord",
    "GoldenExample",
    "GraphRecord",
    "Limits",
    "Manifest",
    "Precision",
    "QualityFigure",
    "SpecialTokens",
    "check_provenance",
    "first_problem",
]

Precision = Literal["fp32", "fp16", "int8"]

_MAX_FILE_NAME_BYTES = 255
_MAX_PROVENANCE_DEPTH = 20
"""protobuf reads at most 100 messages within each other; a level of JSON takes three."""
_MAX_PROVENANCE_NUMBER = 2**64


def _plain_file_name(name: str) -> str:
    is_plain = (
        name not in {"", ".", ".."}
        and name.isprintable()
        and not set(name) & {"/", "\\"}
        and len(name.encode()) <= _MAX_FILE_NAME_BYTES
    )
    if not is_plain:
        raise ValueError("it is not a plain file name")
    return name


FileName = Annotated[str, AfterValidator(_plain_file_name)]
Size = Annotated[int, Field(ge=1, le=2**24, strict=True)]
NumLayers = Annotated[int, Field(le=1024, strict=True)]
TokenId = Annotated[int, Field(ge=0, lt=2**24, strict=True)]
Unsigned32 = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Signed64 = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class _Record(BaseModel):
    # Newer writers may add keys; an older reader of the same schema version passes them by.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Dimensions(_Record):
    """Sizes of the network. Caches are (rows, num_kv_heads, tokens, head_size) for each decoder layer."""

    vocabulary_size: Size
    width: Size
    num_heads: Size
    num_kv_heads: Size
    head_size: Size
    feed_forward_width: Size
    num_encoder_layers: Annotated[NumLayers, Field(ge=0)]
    num_decoder_layers: Annotated[NumLayers, Field(ge=1)]
    num_parameters: Signed64


class Limits(_Record):
    """Token counts, special tokens included.

    Translation: a source up to `max_source_tokens`, an answer up to `max_output_tokens`. Generation: a prompt up
    to `max_source_tokens`, and prompt plus answer up to `max_context_tokens`.
    """

    max_source_tokens: Size
    max_output_tokens: Size
    max_context_tokens: Size

    @model_validator(mode="after")
    def _check_answer_fits(self) -> Self:
        if self.max_output_tokens > self.max_context_tokens:
            raise ValueError(
                f"max_output_tokens = {self.max_output_tokens} is more than "
                f"max_context_tokens = {self.max_context_tokens}"
            )
        return self


class SpecialTokens(_Record):
    """Ids with a meaning to the engine."""

    padding: TokenId
    unknown: TokenId
    begin: TokenId
    end: TokenId

    @property
    def without_text(self) -> tuple[int, ...]:
        """The tokens that stand for no text. No answer holds them: two answers could read the same."""
        return self.padding, self.unknown, self.begin

    @model_validator(mode="after")
    def _check_an_answer_can_end(self) -> Self:
        if self.end in self.without_text:
            raise ValueError(f"end = {self.end} is another special token too, which no answer holds")
        return self


class GraphRecord(_Record):
    """One ONNX graph: its file and the names it takes and gives, in order."""

    file: FileName
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class FileRecord(_Record):
    """The size and the hash that a file must have."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    num_bytes: Signed64


class QualityFigure(_Record):
    """A figure measured at export through the serving backend.

    Attributes:
        signature: by which sacreBLEU names what exactly was measured, of BLEU and chrF.
    """

    metric: str
    value: Finite
    num_examples: Unsigned32
    data: str
    signature: str = ""


class GoldenExample(_Record):
    """A greedy answer that this bundle must give again wherever it is loaded."""

    text: str
    max_tokens: Size
    token_ids: tuple[TokenId, ...]
    log_probability: Finite

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if len(self.token_ids) > self.max_tokens:
            raise ValueError(f"{len(self.token_ids)} token_ids are more than max_tokens = {self.max_tokens}")
        return self


class Manifest(_Record):
    """The content of bundle.json."""

    schema_version: Annotated[int, Field(strict=True)]
    task: Task
    precision: Precision
    dimensions: Dimensions
    limits: Limits
    special_tokens: SpecialTokens
    graphs: dict[str, GraphRecord]
    files: dict[FileName, FileRecord]
    provenance: dict[str, Any]
    quality: tuple[QualityFigure, ...] = ()
    verification: dict[str, Any] = {}
    golden_examples: tuple[GoldenExample, ...]

    @property
    def facts(self) -> TaskFacts:
        """The facts of the model's task."""
        return FACTS[self.task]

    @model_validator(mode="after")
    def _check_between_records(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        dims, limits = self.dimensions, self.limits
        for name, token_id in self.special_tokens.model_dump().items():
            if token_id >= dims.vocabulary_size:
                yield f"special_tokens.{name} = {token_id}: {_beyond(dims)}"
        if dims.num_heads % dims.num_kv_heads:
            yield (
                f"dimensions.num_heads = {dims.num_heads}: it is no multiple of num_kv_heads = {dims.num_kv_heads}"
            )
        if not self.facts.has_source and limits.max_context_tokens < 2:
            yield "limits.max_context_tokens = 1: a prompt and an answer need two tokens"
        for index, example in enumerate(self.golden_examples):
            key = f"golden_examples.{index}"
            if example.max_tokens > limits.max_output_tokens:
                yield (
                    f"{key}.max_tokens = {example.max_tokens}: it is more than "
                    f"limits.max_output_tokens = {limits.max_output_tokens}"
                )
            largest = max(example.token_ids, default=0)
            if largest >= dims.vocabulary_size:
                yield f"{key}.token_ids: {largest}: {_beyond(dims)}"


def _beyond(dims: Dimensions) -> str:
    return f"the vocabulary has {dims.vocabulary_size} tokens"


def check_provenance(value: Any, key: str = "provenance", depth: int = 0) -> None:
    """Check that a `google.protobuf.Struct` holds `value`, which `ListModels` sends in one.

    Raises:
        ValueError: a number is not finite or too large, or values are nested too deeply.
    """
    if depth > _MAX_PROVENANCE_DEPTH:
        raise ValueError(f"provenance is nested more than {_MAX_PROVENANCE_DEPTH} levels deep")
    if isinstance(value, dict):
        for name, each in value.items():
            check_provenance(each, f"{key}.{_shown_part(name)}", depth + 1)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            check_provenance(each, f"{key}.{index}", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} = {value}: it is no finite number")
    elif isinstance(value, int) and abs(value) > _MAX_PROVENANCE_NUMBER:
        raise ValueError(f"{key} = {_shown_value(value)}: it has more than 64 bits")


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, as one line: key, value, and what would be right."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(_shown_part(part) for part in problem["loc"] if part != "[key]")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{key} is missing"
    if not key:
        return message
    if isinstance(problem["input"], dict):  # a rule between several keys, which it names
        return f"{key}: {message}"
    return f"{key} = {_shown_value(problem['input'])}: {message}"


def _shown_part(part: object) -> str:
    text = str(part)
    return text if text.isprintable() and len(text) <= MAX_SHOWN_CHARACTERS else _shown_value(text)


def _shown_value(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"
