"""Prompts that begin the same, over gRPC: the answer stays, the metrics tell."""

from pathlib import Path

import pytest
import structlog
from tests.integration.serving import BUNDLES, OLD_BUNDLES, Served, serving

from dragoman.server.bundle.reader import Bundle
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS
from dragoman.v1 import decoding_pb2, generation_pb2

TOKENIZER = Bundle.read(BUNDLES / "count" / "2").tokenizer
PROMPT = " ".join(["one two three four five six seven eight nine ten"] * 8)
NUM_TOKENS = len(TOKENIZER.encode(PROMPT).ids)
NUM_REUSED = (NUM_TOKENS - 1) // BLOCK_TOKENS * BLOCK_TOKENS


async def generate(served: Served, prompt: str) -> tuple[str, float]:
    options = decoding_pb2.DecodingOptions(max_tokens=12)
    request = generation_pb2.GenerateRequest(model="count", prompt=prompt, options=options)
    text = ""
    async for response in served.generation.Generate(request):
        text += response.text_delta
    return text, response.summary.log_probability


def tokens(served: Served) -> tuple[float, float]:
    """Prompt tokens computed and reused."""
    computed, reused = (
        served.metric("prompt_tokens_total", model="count", source=source)
        for source in ("computed", "reused")
    )
    return computed, reused


@pytest.mark.parametrize("layout", ["threads", "processes"])
async def test_a_prompt_seen_before_is_reused_and_answered_as_before(layout: str) -> None:
    assert NUM_REUSED >= 2 * BLOCK_TOKENS
    async with serving(BUNDLES, f"engine.lanes_run_in={layout}", "engine.lanes=2") as served:
        assert tokens(served) == (0, 0), "the golden examples are no prompts of callers"
        assert served.metric("prefix_cache_bytes", model="count") == 0
        first = await generate(served, PROMPT)
        assert tokens(served) == (NUM_TOKENS, 0)
        held = served.metric("prefix_cache_bytes", model="count")
        assert held > 0
        assert await generate(served, PROMPT) == first
        assert tokens(served) == (2 * NUM_TOKENS - NUM_REUSED, NUM_REUSED)
        assert served.metric("prefix_cache_bytes", model="count") == held
        _, exposition = await served.http("/metrics")
        assert 'dragoman_prompt_tokens_total{model="count",source="reused"}' in exposition
    async with serving(BUNDLES, "engine.prefix_cache_bytes=0") as off:
        assert await generate(off, PROMPT) == first
        assert await generate(off, PROMPT) == first
        assert tokens(off) == (2 * NUM_TOKENS, 0)
        assert off.metric("prefix_cache_bytes", model="count") == 0


@pytest.mark.parametrize("layout", ["threads", "processes"])
@pytest.mark.parametrize(
    ("models", "override", "reason"),
    [
        (
            OLD_BUNDLES,
            "engine.prefix_cache_bytes=1000000",
            "the bundle has no graph 'extend': export it again",
        ),
        (BUNDLES, "engine.prefix_cache_bytes=7", "engine.prefix_cache_bytes = 7 does not hold one block"),
    ],
)
async def test_the_log_says_why_nothing_is_reused(
    models: Path, override: str, reason: str, layout: str
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(models, override, f"engine.lanes_run_in={layout}") as served:
            await generate(served, PROMPT)
            await generate(served, PROMPT)
            computed, reused = tokens(served)
    assert (computed, reused) == (2 * NUM_TOKENS, 0)
    assert [entry["reason"] for entry in logs if entry["event"] == "no_prefix_reuse"] == [reason]
