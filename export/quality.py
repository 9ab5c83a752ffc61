"""Quality of a bundle, measured on held-out data through the backend that serves it."""

import itertools
import math
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from dragoman.export.held_out import HeldOut
from dragoman.model import quality
from dragoman.model.batching import Stream, in_order
from dragoman.model.decoding import Hypothesis
from dragoman.model.run import Run
from dragoman.model.tokenizer import BEGIN_ID, PADDING_ID
from dragoman.model.transformer import LanguageModel
from dragoman.server.bundle.manifest import QualityFigure
from dragoman.server.engine.scoring import score_offline
from dragoman.server.execution.backend import Backend

__all__ = ["bits_per_byte", "generation_quality", "reference_quality", "translation_quality"]

_MAX_SCORED_TOKENS = 100_000


def translation_quality(
    run: Run, examples: HeldOut, answers: Iterable[Sequence[int]]
) -> tuple[QualityFigure, ...]:
    """What the training measured too, of answers that are given as token ids, in percent."""
    texts = [run.tokenizer.decode(answer) for answer in answers]
    comparison = quality.Comparison.of(run.recipe)
    values = quality.translation_figures(texts, examples.references, comparison)
    signatures = quality.signatures(comparison)
    return tuple(
        QualityFigure(
            metric=name,
            value=value,
            num_examples=len(texts),
            data=examples.data,
            signature=signatures.get(name, ""),
        )
        for name, value in values.items()
    )


def generation_quality(
    backend: Backend, tokenizer: Tokenizer, documents: Sequence[str], data: str
) -> tuple[QualityFigure, ...]:
    """Bits per byte over the first documents, about a hundred thousand tokens of them."""
    chosen = _scored(tokenizer, documents)
    value = bits_per_byte(backend, tokenizer, chosen)
    return (QualityFigure(metric="bits_per_byte", value=value, num_examples=len(chosen), data=data),)


def reference_quality(
    run: Run, examples: HeldOut, answers: Sequence[Hypothesis]
) -> tuple[QualityFigure, ...]:
    """What the PyTorch model in fp32 reaches on the same examples; `answers` are its greedy ones."""
    if not isinstance(run.model, LanguageModel):
        return translation_quality(run, examples, (answer.token_ids for answer in answers))
    chosen = _scored(run.tokenizer, examples.documents)
    value = quality.bits_per_byte(run.model, run.tokenizer, chosen)
    return (QualityFigure(metric="bits_per_byte", value=value, num_examples=len(chosen), data=examples.data),)


def _scored(tokenizer: Tokenizer, documents: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    num_tokens = 0
    for document in documents:
        if chosen and num_tokens >= _MAX_SCORED_TOKENS:
            break
        chosen.append(document)
        num_tokens += len(tokenizer.encode(document, add_special_tokens=False).ids)
    return chosen


def bits_per_byte(backend: Backend, tokenizer: Tokenizer, documents: Sequence[str]) -> float:
    """What `dragoman.model.quality.bits_per_byte` measures, by feeding the same windows through the serving graphs."""
    token_ids = [
        encoding.ids for encoding in tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
    ]
    context_tokens = backend.bundle.manifest.limits.max_context_tokens
    windows = [
        labels[labels != PADDING_ID].tolist()
        for batch in in_order(Stream(token_ids, context_tokens), context_tokens)
        for labels in batch.label_ids
    ]
    scores = score_offline(backend, [[BEGIN_ID]] * len(windows), windows)
    num_bytes = sum(len(document.encode()) for document in documents)
    return -sum(itertools.chain.from_iterable(scores)) / math.log(2) / num_bytes
