"""Several fronts have the same credentials, and each of them takes up what changes."""

import asyncio
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest
from tests.integration.certificates import Authority, replace
from tests.integration.serving import BUNDLES, PATIENCE_S, Served, serving
from tests.integration.test_server_tls import names_shown

from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import make_token, token_line
from dragoman.v1 import translation_pb2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several fronts need Linux")

REQUEST = translation_pb2.TranslateRequest(model="spell", inputs=["12"])
FRONTS = ("engine.lanes_run_in=processes", "engine.lanes=1", "server.fronts=2")
NUM_CONNECTIONS = 14
"""The kernel gives each to one of two fronts: all of them to the same one once in eight thousand times."""


async def test_all_fronts_ask_and_reload(tmp_path: Path) -> None:
    authority, tokens = Authority.in_folder(tmp_path), tmp_path / "tokens.toml"

    def accept() -> str:
        """Let the server know one new token, and no other."""
        text = make_token()
        replace(tokens, token_line(text, "app", [Scope.INFER], None).encode())
        return text

    old = accept()
    async with serving(BUNDLES, *FRONTS, *authority.settings, f"security.tokens_file={tokens}") as served:

        async def codes(token: str) -> set[str]:
            """How calls with the token end, each over a connection of its own."""
            ends = set()
            options = [("grpc.use_local_subchannel_pool", 1)]
            target, credentials = f"localhost:{served.server.port}", authority.client()
            for _ in range(NUM_CONNECTIONS):
                async with grpc.aio.secure_channel(target, credentials, options) as channel:
                    call = Served(served.server, channel).translation.Translate(
                        REQUEST, metadata=(("authorization", f"Bearer {token}"),)
                    )
                    ends.add((await call.code()).name)
            return ends

        assert await codes(old) == {"OK"}
        assert await codes("dragoman_none") == {"UNAUTHENTICATED"}
        new = accept()
        authority.renew("new.example")
        async with asyncio.timeout(PATIENCE_S):
            while await codes(new) != {"OK"}:
                await asyncio.sleep(0.1)
        assert await codes(old) == {"UNAUTHENTICATED"}

        def all_shown() -> bool:
            port = served.server.port
            return all("new.example" in names_shown(port, authority) for _ in range(NUM_CONNECTIONS))

        async with asyncio.timeout(PATIENCE_S):
            while not await asyncio.to_thread(all_shown):
                await asyncio.sleep(0.1)
