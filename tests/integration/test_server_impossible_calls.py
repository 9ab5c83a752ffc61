"""A call that needs more rows than there are is refused, and holds up nobody until then."""

from typing import Any

import grpc
import pytest
from tests.integration.serving import BUNDLES, PATIENCE_S, serving, violations_of

from dragoman.server.requests.tokenization import Tokenising
from dragoman.v1 import decoding_pb2, translation_pb2

Request = translation_pb2.TranslateRequest


@pytest.mark.parametrize("timeout_s", [PATIENCE_S, None])
async def test_rows_that_nobody_can_have_are_no_load(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float | None
) -> None:
    """Any number of them could be claimed, and the calls of others would be refused as if there were no time."""
    rows_while_tokenised: list[int] = []
    encode = Tokenising.encode

    async def noting(tokenising: Tokenising, *arguments: Any, **options: Any) -> Any:
        rows_while_tokenised.append(load._num_rows)
        return await encode(tokenising, *arguments, **options)

    async with serving(BUNDLES, "engine.slots_per_lane=4", "engine.max_waiting=128") as served:
        recorder = served.server._front._recorder
        assert recorder is not None
        load = recorder.loads["spell"]
        monkeypatch.setattr(Tokenising, "encode", noting)
        impossible = Request(
            model="spell",
            inputs=["12"] * 128,
            options=decoding_pb2.DecodingOptions(beam_size=4, num_hypotheses=1),
        )
        call = served.translation.Translate(impossible, timeout=timeout_s)
        assert "the server's limit" in (await violations_of(call))["inputs"]
        possible = served.translation.Translate(Request(model="spell", inputs=["12"] * 3), timeout=timeout_s)
        assert len((await possible).translations) == 3
        assert rows_while_tokenised == [0, 3]
        assert await possible.code() is grpc.StatusCode.OK
        assert load._num_rows == 0
