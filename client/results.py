"""The answers of a server, as plain data: no protobuf type reaches the caller."""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

__all__ = [
    "PRIORITIES",
    "DecodingOptions",
    "FinishReason",
    "GenerationSummary",
    "Hypothesis",
    "ModelAlias",
    "ModelInfo",
    "ModelList",
    "ModelVersion",
    "NotLoadedModel",
    "OutputToken",
    "PriorityName",
    "QualityFigure",
    "Task",
    "TextScore",
    "TokenAlternative",
    "Translation",
    "TranslationDelta",
]

PriorityName = Literal["high", "normal", "low"]
"""How soon a call gets its turn while calls wait for the model."""
PRIORITIES: tuple[PriorityName, ...] = ("high", "normal", "low")


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
        beam_size: Number of hypotheses at a time. Above 1 is beam search, which needs temperature 0 and
            returns its text when the search has ended.
        num_hypotheses: Answers to give, best first: with beam search at most beam_size * patience, with a
            temperature as many samples.
        length_penalty: Hypotheses are ranked by log-probability / length ^ length_penalty; 1 when left out.
        coverage_penalty: Adds coverage_penalty * sum(log(min(attention each source token got, 1))) to the score
            (Wu et al. 2016). Needs beam search and a translation model with alignments.
        patience: Beam search ends with beam_size * patience finished hypotheses (Kasai et al. 2022).
        repetition_penalty: Above 1, tokens that the output holds already become less probable (Keskar et al. 2019).
        no_repeat_ngram_size: No sequence of this many tokens occurs twice; 0 is no limit.
        suppressed_texts: The output holds none of these texts, not even within a word or across tokens.
        suppressed_token_ids: Tokens that are never produced.
        num_alternatives: Returns each output token with its log-probability, and this number of the most probable
            tokens at its place. 0 returns the tokens alone.
        alignment: Returns for each output token the source token that gets most of its attention. Needs a
            translation model that was exported with alignments.
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    beam_size: int | None
    num_hypotheses: int | None
    length_penalty: float | None
    coverage_penalty: float | None
    patience: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    suppressed_texts: str | Sequence[str] | None
    suppressed_token_ids: Sequence[int] | None
    num_alternatives: int | None
    alignment: bool | None


class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    UNSPECIFIED = "unspecified"
    END_OF_SEQUENCE = "end_of_sequence"
    STOP_STRING = "stop_string"
    LENGTH = "length"


class Task(enum.StrEnum):
    """The task of a model."""

    UNSPECIFIED = "unspecified"
    TRANSLATION = "translation"
    GENERATION = "generation"


@dataclass(frozen=True, slots=True)
class TokenAlternative:
    """A token that might have been chosen."""

    id: int
    token: str
    log_probability: float


@dataclass(frozen=True, slots=True)
class OutputToken:
    """A token of an answer.

    Attributes:
        id: Its number in the vocabulary.
        token: As the vocabulary spells it, with whatever marks the beginning of a word.
        log_probability: Natural logarithm of its probability under the model, before any option changes it.
        alternatives: The most probable tokens at this place, best first.
        source_index: With `alignment`: which of `Translation.source_tokens` it looks at most, from 0; the
            end of sequence has none.
    """

    id: int
    token: str
    log_probability: float
    alternatives: tuple[TokenAlternative, ...] = ()
    source_index: int | None = None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One answer of several.

    Attributes:
        text: The answer.
        finish_reason: Why it ended.
        num_output_tokens: Its tokens, the end of sequence included.
        log_probability: Sum of the natural logarithms of its tokens' probabilities.
        score: What hypotheses are ranked by.
        tokens: With `num_alternatives` or `alignment`: the tokens one by one.
    """

    text: str
    finish_reason: FinishReason
    num_output_tokens: int
    log_probability: float
    score: float
    tokens: tuple[OutputToken, ...] = ()


@dataclass(frozen=True, slots=True)
class TextScore:
    """How probable a given text is.

    Attributes:
        log_probability: Natural logarithm of its probability; a translation's counts the end of sequence.
        perplexity: exp(-log_probability / number of tokens).
        tokens: What was scored, one by one.
        version: The model version that answered.
    """

    log_probability: float
    perplexity: float
    tokens: tuple[OutputToken, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Translation:
    """One input's answer.

    Attributes:
        text: The answer.
        finish_reason: Why it ended.
        num_input_tokens: Length of the input, special tokens included.
        num_output_tokens: Tokens produced, the end of sequence included.
        log_probability: Sum of the natural logarithms of the chosen tokens' probabilities.
        score: What hypotheses are ranked by; see `DecodingOptions.length_penalty`.
        version: The model version that answered; None where an older server streams, which does not say.
        tokens: With `num_alternatives` or `alignment`: the tokens one by one.
        hypotheses: With `num_hypotheses` above 1: all answers, best first; the first is this one.
        source_tokens: With `alignment`: the tokens that `OutputToken.source_index` counts.
    """

    text: str
    finish_reason: FinishReason
    num_input_tokens: int
    num_output_tokens: int
    log_probability: float
    score: float
    version: str | None = None
    tokens: tuple[OutputToken, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    source_tokens: tuple[str, ...] = ()


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
    """The tokens that a generated text took, and why it ended; the attributes are those of `Translation`."""

    finish_reason: FinishReason
    num_input_tokens: int
    num_output_tokens: int
    log_probability: float
    score: float
    version: str
    tokens: tuple[OutputToken, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()


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
        precision: "fp32", "fp16" or "int8".
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


@dataclass(frozen=True, slots=True)
class NotLoadedModel:
    """A model or a version in a server's models folder that the server does not serve.

    Attributes:
        name: The model's folder.
        version: The version's folder; "" where the whole model is meant.
        reason: "not_a_model", "invalid_name", "unreadable", "duplicate_version", "broken", "unavailable" or
            "incomplete"; a newer server may have others.
        description: One line for people.
    """

    name: str
    version: str
    reason: str
    description: str


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """The state of a version in a server.

    Attributes:
        model: The model's name.
        version: Its number.
        state: "loading", "serving", "draining", "failed" or "unloaded"; a newer server may have others.
        description: Why it is in this state, in one line for people; "" where there is nothing to be said.
    """

    model: str
    version: str
    state: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class ModelAlias:
    """Another name of a version, which `version=` takes.

    Attributes:
        model: The model's name.
        alias: The name.
        version: What it names.
        traffic_percent: Share of the calls without a version that go to this version.
    """

    model: str
    alias: str
    version: str
    traffic_percent: float = 0.0


class ModelList(list[ModelInfo]):
    """The models that a server holds.

    Attributes:
        not_loaded: The models and versions that the server found and does not serve, by name and version.
        versions: The state of every version, by name and version.
        aliases: By the model's name and the alias.
    """

    def __init__(
        self,
        models: Iterable[ModelInfo],
        not_loaded: Iterable[NotLoadedModel] = (),
        versions: Iterable[ModelVersion] = (),
        aliases: Iterable[ModelAlias] = (),
    ) -> None:
        super().__init__(models)
        self.not_loaded = tuple(not_loaded)
        self.versions = tuple(versions)
        self.aliases = tuple(aliases)
