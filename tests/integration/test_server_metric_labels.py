"""No caller makes a series: whatever names and texts calls have, labels are of what the server itself knows."""

import contextlib
from collections.abc import Awaitable, Iterator
from typing import Any

import grpc
import pytest
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.integration.serving import BUNDLES, Served, serving
from tests.integration.test_server_open_inference import Stub, request

from dragoman.inference import grpc_service_pb2 as inference
from dragoman.v1 import decoding_pb2, generation_pb2, model_pb2, translation_pb2


def calls(served: Served, mark: str) -> Iterator[Awaitable[Any]]:
    """Calls that have `mark` wherever a caller may say something."""
    said = (
        ("x-request-id", mark),
        ("dragoman-sticky-key", mark),
        ("x-tenant", mark),
        ("authorization", f"Bearer {mark}"),
    )
    options = decoding_pb2.DecodingOptions(stop=[mark])
    for model, version in ((mark, ""), ("spell", mark), ("spell", "")):
        message = translation_pb2.TranslateRequest(
            model=model, version=version, inputs=[mark], target_prefixes=[mark], options=options
        )
        yield served.translation.Translate(message, metadata=said)
        scored = translation_pb2.ScoredPair(source=mark, target=mark)
        pairs = translation_pb2.ScoreTranslationsRequest(model=model, version=version, pairs=[scored])
        yield served.translation.ScoreTranslations(pairs, metadata=said)
    text = generation_pb2.ScoreTextsRequest(model=mark, texts=[mark])
    yield served.generation.ScoreTexts(text, metadata=said)
    yield served.models.GetModel(model_pb2.GetModelRequest(model=mark), metadata=said)
    yield served.models.LoadModel(model_pb2.LoadModelRequest(model=mark, version=mark), metadata=said)
    yield served.models.UnloadModel(model_pb2.UnloadModelRequest(model=mark, version=mark), metadata=said)
    alias = model_pb2.SetAliasRequest(alias=model_pb2.ModelAlias(model=mark, alias=mark, version=mark))
    yield served.models.SetAlias(alias, metadata=said)
    stub: Any = Stub(served.channel)
    yield stub.ModelInfer(request(mark, mark), metadata=said)
    yield stub.ModelInfer(request("spell", mark, **{mark: 1}), metadata=said)
    yield stub.ModelReady(inference.ModelReadyRequest(name=mark, version=mark), metadata=said)
    yield stub.ModelStatistics(inference.ModelStatisticsRequest(name=mark), metadata=said)
    yield stub.RepositoryModelLoad(inference.RepositoryModelLoadRequest(model_name=mark), metadata=said)
    for path in (f"/dragoman.v1.TranslationService/{mark}", f"/{mark}/Translate"):
        method: Any = served.channel.unary_unary(path)
        yield method(mark.encode(), metadata=said)


async def series_after(served: Served, mark: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    for call in calls(served, mark):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call
    page = generate_latest(served.server.metrics.page).decode()  # type: ignore[no-untyped-call]
    assert mark not in page
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(page)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


@pytest.mark.parametrize("allow_changes", ["false", "true"])
async def test_callers_make_no_series(allow_changes: str) -> None:
    async with serving(BUNDLES, f"models.allow_changes={allow_changes}") as served:
        first = await series_after(served, "zqfirst")
        assert any(dict(labels).get("code") == "NOT_FOUND" for _, labels in first), "calls were counted"
        assert await series_after(served, "zqsecond") == first
