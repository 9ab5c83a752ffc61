"""What a server answers, as plain data: no protobuf type reaches the caller."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

__all__ = [
    "DecodingOptions",
    "FinishReason",
    "GenerationSummary",
    "ModelInfo",
    "QualityFigure",
    "Task",
    "Translation",
    "TranslationDelta",
]


class DecodingOptions(TypedDict, total=False):
    """How the next token is chosen and when a sequence ends. What is left out or None, the server decides.

    Attributes:
        max_tokens: Most tokens to produce; the model's limit when left out.
        min_tokens: Fewest tokens to produce.
        temperature: 0 is greedy; above 0 samples from softmax(logits / temperature).
        top_k: Sample among the k most probable tokens; 0 is among all.
        top_p: Sample among the smallest set of tokens whose probabilities reach p, 0 < p <= 1
            (nucleus sampling, Holtzman et al. 2020).
        seed: The same seed, input and model give the same answer.
        stop: The output ends before the first of these strings.
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None


class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    UNSPECIFIED = "unspecified"
    END_OF_SEQUENCE = "end_of_sequence"
    STOP_STRING = "stop_string"
    LENGTH = "length"


class Task(enum.StrEnum):
    """What a model does."""

    UNSPECIFIED = "unspecified"
    TRANSLATION = "translation"
    GENERATION = "generation"


@dataclass(frozen=True, slots=True)
class Translation:
    """One input's answer.

    Attributes:
        text: The answer.
        finish_reason: Why it ended.
        num_input_tokens: Length of the input, special tokens included.
        num_output_tokens: Tokens produced, the end of sequence included.
        log_probability: Sum of the natural logarithms of the chosen tokens' probabilities.
        version: The model version that answered; None for a streamed answer, which does not say.
    """

    text: str
    finish_reason: FinishReason
    num_input_tokens: int
    num_output_tokens: int
    log_probability: float
    version: str | None = None


@dataclass(frozen=True, slots=True)
class TranslationDelta:
    """A piece of a streamed translation.

    Attributes:
        index: Which input it belongs to, from 0.
        text: Text to append to what came before for this input.
        translation: The whole answer, in the last piece of each input; None before.
    """

    index: int
    text: str
    translation: Translation | None


@dataclass(frozen=True, slots=True)
class GenerationSummary:
    """What a generated text cost and why it ended; the attributes are those of `Translation`."""

    finish_reason: FinishReason
    num_input_tokens: int
    num_output_tokens: int
    log_probability: float
    version: str


@dataclass(frozen=True, slots=True)
class QualityFigure:
    """A quality measured at export, with the data it was measured on."""

    metric: str
    value: float
    num_examples: int
    data: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that a server holds.

    Attributes:
        name: What `model=` takes.
        version: What `version=` takes.
        task: Translation or generation.
        precision: "fp32" or "int8".
        provider: The ONNX Runtime execution provider that runs it: "cpu" or "cuda".
        num_parameters: Number of weights.
        max_input_tokens: Longest input accepted, special tokens included.
        max_output_tokens: Most tokens one answer may have.
        provenance: Where it comes from: recipe, commit, training step.
        quality: Figures measured at export.
    """

    name: str
    version: str
    task: Task
    precision: str
    provider: str
    num_parameters: int
    max_input_tokens: int
    max_output_tokens: int
    provenance: Mapping[str, Any]
    quality: tuple[QualityFigure, ...]
