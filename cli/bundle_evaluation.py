"""Quality of a bundle's answers, through the serving backend in this process."""

import time
from pathlib import Path
from typing import Any

from dragoman.cli.evaluation import (
    Evaluation,
    Progress,
    Search,
    corpus_of,
    split_name,
    test_pairs,
    translation_quality,
)
from dragoman.common.errors import UsageError
from dragoman.export.quality import generation_quality
from dragoman.model.quality import headline
from dragoman.server.bundle.reader import Bundle
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.offline import decode_offline
from dragoman.server.execution.backend import Backend

__all__ = ["evaluate_bundle"]

NUM_SLOTS = 32
INPUTS_PER_PASS = 8 * NUM_SLOTS


def evaluate_bundle(
    folder: Path, *, data: Path | None, limit: int | None, search: Search, progress: Progress
) -> Evaluation:
    """Measure a bundle's folder; `limit` is the most examples (pairs or documents) to use.

    Raises:
        BundleError: the folder holds no sound bundle.
        UsageError: beam search is asked for where nothing is looked for, or with more hypotheses than there are rows.
        CorpusError: its test examples cannot be read.
    """
    bundle = Bundle.read(folder)
    if search.beam_size > NUM_SLOTS:
        raise UsageError(
            f"--beam-size {search.beam_size} is more than {NUM_SLOTS}, the rows that run together"
        )
    if search.beam_size > 1 and bundle.manifest.task != "translation":
        raise UsageError(
            f"--beam-size {search.beam_size} is for translations: {folder} is scored on given texts"
        )
    backend = Backend.load(bundle, provider="cpu", num_threads=1)
    if bundle.manifest.task == "translation":
        return _translation(backend, data, limit, search, progress)
    return _generation(backend, data, limit, progress)


def _translation(
    backend: Backend, data: Path | None, limit: int | None, search: Search, progress: Progress
) -> Evaluation:
    bundle = backend.bundle
    data_name, pairs = test_pairs(bundle.manifest.provenance, data, limit, source=str(bundle.path))
    limits, tokenizer = bundle.manifest.limits, bundle.tokenizer
    parameters = DecodingParameters(
        limits.max_output_tokens, beam_size=search.beam_size, length_penalty=search.length_penalty
    )
    begin_s = time.perf_counter()
    encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast([pair.source for pair in pairs])]
    answers: list[str | None] = [None] * len(pairs)
    fitting = [index for index, ids in enumerate(encoded) if len(ids) <= limits.max_source_tokens]
    for start in range(0, len(fitting), INPUTS_PER_PASS):
        progress("translating", start, len(fitting))
        chosen = fitting[start : start + INPUTS_PER_PASS]
        finished = decode_offline(backend, [(encoded[i], parameters) for i in chosen], num_slots=NUM_SLOTS)
        for index, answer in zip(chosen, finished, strict=True):
            answers[index] = tokenizer.decode(answer.best.token_ids)
    seconds = time.perf_counter() - begin_s
    quality = translation_quality(bundle.manifest.provenance, answers, pairs, source=str(bundle.path))
    return _evaluation(
        bundle, data_name, len(pairs), quality, seconds, num_refused=answers.count(None), search=search
    )


def _generation(backend: Backend, data: Path | None, limit: int | None, progress: Progress) -> Evaluation:
    bundle = backend.bundle
    corpus = corpus_of(bundle.manifest.provenance, data, task="generation", source=str(bundle.path))
    documents = [document for document in corpus.held_out[:limit] if isinstance(document, str)]
    progress("scoring", 0, 1)
    begin_s = time.perf_counter()
    figures = generation_quality(backend, bundle.tokenizer, documents, split_name(corpus))
    quality = {
        "headline": headline("generation", ()),
        "metrics": {figure.metric: figure.value for figure in figures},
        "signatures": {},
    }
    return _evaluation(
        bundle, figures[0].data, figures[0].num_examples, quality, time.perf_counter() - begin_s
    )


def _evaluation(
    bundle: Bundle,
    data: str,
    num_examples: int,
    quality: dict[str, Any],
    seconds: float,
    *,
    num_refused: int = 0,
    search: Search | None = None,
) -> Evaluation:
    return Evaluation(
        model=bundle.name,
        version=bundle.version,
        task=bundle.manifest.task,
        precision=bundle.manifest.precision,
        through="bundle",
        data=data,
        num_examples=num_examples,
        num_refused=num_refused,
        search=search,
        seconds=round(seconds, 3),
        **quality,
    )
