"""From the messages that a server answers with to the caller's plain data."""

from collections.abc import Iterable
from typing import Any

from google.protobuf import json_format

from dragoman.client.results import (
    FinishReason,
    GenerationSummary,
    Hypothesis,
    ModelAlias,
    ModelInfo,
    ModelList,
    ModelVersion,
    NotLoadedModel,
    OutputToken,
    QualityFigure,
    Task,
    TextScore,
    TokenAlternative,
    Translation,
    TranslationDelta,
)
from dragoman.v1 import decoding_pb2, generation_pb2, model_pb2, translation_pb2

__all__ = ["delta_from", "model_from", "models_from", "scores_from", "summary_from", "translations_from"]

_FINISH_REASONS = {
    decoding_pb2.FINISH_REASON_END_OF_SEQUENCE: FinishReason.END_OF_SEQUENCE,
    decoding_pb2.FINISH_REASON_STOP_STRING: FinishReason.STOP_STRING,
    decoding_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}
_TASKS = {
    model_pb2.TASK_TRANSLATION: Task.TRANSLATION,
    model_pb2.TASK_GENERATION: Task.GENERATION,
}


def translations_from(response: translation_pb2.TranslateResponse) -> list[Translation]:
    """The translations, in the order of the inputs."""
    return [_translation_from(translation, response.version) for translation in response.translations]


def delta_from(response: translation_pb2.StreamTranslateResponse, first_index: int = 0) -> TranslationDelta:
    """A piece of a streamed translation; `first_index` is the place of the call's first text among all."""
    whole = None
    if response.HasField("translation"):
        # A server of before the field says nothing.
        whole = _translation_from(response.translation, response.version or None)
    return TranslationDelta(index=first_index + response.index, text=response.text_delta, translation=whole)


def summary_from(summary: generation_pb2.GenerationSummary) -> GenerationSummary:
    """The summary of a generated text."""
    return GenerationSummary(
        finish_reason=_finish_reason_from(summary.finish_reason),
        num_input_tokens=summary.usage.input_tokens,
        num_output_tokens=summary.usage.output_tokens,
        log_probability=summary.log_probability,
        score=summary.score,
        version=summary.version,
        tokens=_tokens_from(summary.tokens),
        hypotheses=_hypotheses_from(summary.hypotheses),
    )


def scores_from(
    response: translation_pb2.ScoreTranslationsResponse | generation_pb2.ScoreTextsResponse,
) -> list[TextScore]:
    """The scores, in the order of the texts."""
    return [
        TextScore(
            log_probability=score.log_probability,
            perplexity=score.perplexity,
            tokens=_tokens_from(score.tokens),
            version=response.version,
        )
        for score in response.scores
    ]


def models_from(response: model_pb2.ListModelsResponse) -> ModelList:
    """The models that the server holds, what it could not load, the state of every version, and the aliases."""
    return ModelList(
        (model_from(model) for model in response.models),
        (
            NotLoadedModel(each.name, each.version, _reason_from(each.reason), each.description)
            for each in response.not_loaded
        ),
        (
            ModelVersion(each.model, each.version, _state_from(each.state), each.description)
            for each in response.versions
        ),
        (ModelAlias(each.model, each.alias, each.version, each.traffic_percent) for each in response.aliases),
    )


def _state_from(state: int) -> str:
    known = model_pb2.VersionState.DESCRIPTOR.values_by_number.get(state)
    return known.name.removeprefix("VERSION_STATE_").lower() if known else "unspecified"


def _reason_from(reason: int) -> str:
    known = model_pb2.NotLoadedReason.DESCRIPTOR.values_by_number.get(reason)
    return known.name.removeprefix("NOT_LOADED_REASON_").lower() if known else "unspecified"


def model_from(model: model_pb2.Model) -> ModelInfo:
    """A model that the server holds."""
    return ModelInfo(
        name=model.name,
        version=model.version,
        task=_TASKS.get(model.task, Task.UNSPECIFIED),
        precision=model.precision,
        provider=model.provider,
        num_parameters=model.num_parameters,
        max_input_tokens=model.max_input_tokens,
        max_output_tokens=model.max_output_tokens,
        provenance=_with_integers(json_format.MessageToDict(model.provenance)),
        quality=tuple(QualityFigure(q.metric, q.value, q.num_examples, q.data) for q in model.quality),
    )


def _translation_from(translation: translation_pb2.Translation, version: str | None) -> Translation:
    return Translation(
        text=translation.text,
        finish_reason=_finish_reason_from(translation.finish_reason),
        num_input_tokens=translation.usage.input_tokens,
        num_output_tokens=translation.usage.output_tokens,
        log_probability=translation.log_probability,
        score=translation.score,
        version=version,
        tokens=_tokens_from(translation.tokens),
        hypotheses=_hypotheses_from(translation.hypotheses),
        source_tokens=tuple(translation.source_tokens),
    )


def _hypotheses_from(hypotheses: Iterable[decoding_pb2.Hypothesis]) -> tuple[Hypothesis, ...]:
    return tuple(
        Hypothesis(
            text=hypothesis.text,
            finish_reason=_finish_reason_from(hypothesis.finish_reason),
            num_output_tokens=hypothesis.output_tokens,
            log_probability=hypothesis.log_probability,
            score=hypothesis.score,
            tokens=_tokens_from(hypothesis.tokens),
        )
        for hypothesis in hypotheses
    )


def _tokens_from(tokens: Iterable[decoding_pb2.OutputToken]) -> tuple[OutputToken, ...]:
    return tuple(
        OutputToken(
            id=token.id,
            token=token.token,
            log_probability=token.log_probability,
            alternatives=tuple(
                TokenAlternative(other.id, other.token, other.log_probability) for other in token.alternatives
            ),
            source_index=token.source_index if token.HasField("source_index") else None,
        )
        for token in tokens
    )


def _finish_reason_from(reason: decoding_pb2.FinishReason.ValueType) -> FinishReason:
    return _FINISH_REASONS.get(reason, FinishReason.UNSPECIFIED)  # a newer server may know more of them


def _with_integers(value: Any) -> Any:
    """`google.protobuf.Struct` knows no whole numbers: 500 arrives as 500.0."""
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
