"""fp16 bundles are for GPUs; on a CPU they answer as they should, and the log says what they cost."""

import onnxruntime as ort
import pytest
import structlog
from tests.integration.serving import BUNDLES, serving

from dragoman.server.bundle.reader import Bundle
from dragoman.v1 import decoding_pb2, translation_pb2

HALVES = BUNDLES.parent / "halves"


needs_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(),
    reason="needs an onnxruntime for CUDA, and a GPU",
)


@pytest.mark.parametrize("provider", ["cpu", pytest.param("cuda", marks=needs_cuda)])
async def test_halves_are_served_and_the_log_says_that_a_cpu_gains_nothing(provider: str) -> None:
    bundle = Bundle.read(HALVES / "spell" / "1")
    golden = bundle.manifest.golden_examples
    with structlog.testing.capture_logs() as logs:
        async with serving(HALVES, f"engine.provider={provider}") as served:
            request = translation_pb2.TranslateRequest(
                model="spell",
                inputs=[example.text for example in golden],
                options=decoding_pb2.DecodingOptions(
                    max_tokens=max(example.max_tokens for example in golden)
                ),
            )
            answer = await served.translation.Translate(request)
    texts = [bundle.tokenizer.decode(list(example.token_ids)) for example in golden]
    assert [translation.text for translation in answer.translations] == texts
    warned = [entry for entry in logs if entry["event"] == "fp16_on_cpu"]
    assert {entry["model"] for entry in warned} == ({"spell", "count"} if provider == "cpu" else set())
    assert all("--precision int8" in entry["reason"] for entry in warned)
    assert {entry["provider"] for entry in logs if entry["event"] == "model_loaded"} == {provider}
