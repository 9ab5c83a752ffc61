"""fp16 bundles are for GPUs; on a CPU they answer as they should, and the log says what they cost."""

import structlog
from dragoman.v1 import decoding_pb2, translation_pb2

from server.bundle import Bundle
from tests.integration.serving import BUNDLES, serving

HALVES = BUNDLES.parent / "halves"


async def test_halves_on_a_cpu_are_served_and_the_log_says_that_nothing_is_gained() -> None:
    bundle = Bundle.read(HALVES / "spell" / "1")
    golden = bundle.manifest.golden_examples
    with structlog.testing.capture_logs() as logs:
        async with serving(HALVES) as served:
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
    assert {entry["model"] for entry in warned} == {"spell", "count"}
    assert all("--precision int8" in entry["reason"] for entry in warned)
    assert {entry["provider"] for entry in logs if entry["event"] == "model_loaded"} == {"cpu"}
