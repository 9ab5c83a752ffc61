"""Quality of a running server's answers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from dragoman.cli.evaluation import GREEDY, Evaluation, Progress, Search, test_pairs, translation_quality
from dragoman.client.asynchronous import AsyncClient
from dragoman.client.blocking import Client
from dragoman.client.credentials import Credentials
from dragoman.client.errors import InvalidRequestError
from dragoman.client.messages import refused_inputs
from dragoman.client.pipeline import map_in_order, until_accepted
from dragoman.client.results import DecodingOptions, ModelInfo, Task
from dragoman.common.errors import UsageError

__all__ = ["evaluate_served"]

ROWS_PER_CALL = 32  # eight calls of so many find room in any server
MAX_CALLS = 8


def evaluate_served(
    target: str,
    model: str | None,
    *,
    version: str = "",
    data: Path | None = None,
    limit: int | None = None,
    search: Search = GREEDY,
    timeout_s: float,
    credentials: Credentials | None = None,
    progress: Progress,
) -> Evaluation:
    """Measure a translation model over gRPC.

    Raises:
        UsageError: there is no such model, or it does not translate.
        CorpusError: its test examples cannot be read.
        CallError: the server cannot be reached.
    """
    with Client(target, timeout_s=timeout_s, credentials=credentials) as client:
        info = client.model(model or _only_model([held.name for held in client.models()]), version)
    if info.task is not Task.TRANSLATION:
        raise UsageError(
            f"{info.name} at {target} is a {info.task} model: bits per byte need the bundle's folder; "
            "`dragoman score` has a server score texts"
        )
    data_name, pairs = test_pairs(info.provenance, data, limit, source=f"{target}: model {info.name}")
    begin_s = time.perf_counter()
    options = DecodingOptions()
    if search.beam_size > 1:
        options = DecodingOptions(beam_size=search.beam_size, length_penalty=search.length_penalty)
    texts = [pair.source for pair in pairs]
    answers = asyncio.run(
        _translate_all(
            target, info, texts, options, timeout_s=timeout_s, credentials=credentials, progress=progress
        )
    )
    return Evaluation(
        model=info.name,
        version=info.version,
        task=info.task.value,
        precision=info.precision,
        through="grpc",
        data=data_name,
        num_examples=len(pairs),
        num_refused=answers.count(None),
        search=search,
        seconds=round(time.perf_counter() - begin_s, 3),
        **translation_quality(info.provenance, answers, pairs, source=f"{target}: model {info.name}"),
    )


async def _translate_all(
    target: str,
    info: ModelInfo,
    texts: Sequence[str],
    options: DecodingOptions,
    *,
    timeout_s: float,
    credentials: Credentials | None,
    progress: Progress,
) -> list[str | None]:
    """The translations; None for each input that the model cannot take."""
    answers: list[str | None] = []
    async with AsyncClient(target, timeout_s=timeout_s, credentials=credentials) as client:

        async def batches() -> AsyncIterator[Sequence[str]]:
            num_inputs = max(1, ROWS_PER_CALL // (options.get("beam_size") or 1))
            for start in range(0, len(texts), num_inputs):
                yield texts[start : start + num_inputs]

        async def translate(batch: Sequence[str]) -> list[str | None]:
            return await _translate_batch(client, info, batch, options, timeout_s)

        results = map_in_order(translate, batches(), max_in_flight=MAX_CALLS)
        async with contextlib.aclosing(results):
            async for translated in results:
                answers += translated
                progress("translating", len(answers), len(texts))
    return answers


async def _translate_batch(
    client: AsyncClient, info: ModelInfo, batch: Sequence[str], options: DecodingOptions, timeout_s: float
) -> list[str | None]:
    answers: list[str | None] = [None] * len(batch)
    indexes = list(range(len(batch)))
    while indexes:
        pending = [batch[index] for index in indexes]

        async def ask(pending: list[str] = pending) -> list[str]:
            translations = await client.translate(pending, model=info.name, version=info.version, **options)
            return [translation.text for translation in translations]

        try:
            texts = await until_accepted(ask, timeout_s=timeout_s)
        except InvalidRequestError as error:
            refused = refused_inputs(error.violations)
            if not refused:
                raise
            indexes = [index for position, index in enumerate(indexes) if position not in refused]
            continue
        for index, text in zip(indexes, texts, strict=True):
            answers[index] = text
        break
    return answers


def _only_model(names: Sequence[str]) -> str:
    different = sorted(set(names))
    if len(different) != 1:
        raise UsageError(f"which model? --model is one of {', '.join(different)}")
    return different[0]
