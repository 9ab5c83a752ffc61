"""CTranslate2 behind a plain grpc.aio server: UTF-8 in, UTF-8 out. Runs in the peers' environment.

What waits when a worker gets free is its next batch, up to 64 texts: that needs no delay, and no batch grows while a
worker idles. The port is the one line on standard output.
"""

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from ctranslate2_text import MAX_BATCH, TextTranslator


class Batcher:
    """Texts that wait, and the workers that take them."""

    def __init__(self, translator: TextTranslator, num_workers: int) -> None:
        self._translator = translator
        self._waiting: asyncio.Queue[tuple[str, asyncio.Future[str]]] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(num_workers)
        self._workers = [asyncio.create_task(self._work()) for _ in range(num_workers)]

    async def translate(self, request: bytes, _: Any) -> bytes:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((request.decode(), answer))
        return (await answer).encode()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            texts = [text for text, _ in batch]
            answers = await loop.run_in_executor(self._threads, self._translator.translate, texts)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


async def serve(settings: dict[str, Any]) -> None:
    translator = TextTranslator(**settings)
    batcher = Batcher(translator, settings["inter_threads"])
    server = grpc.aio.server()
    method: Any = grpc.unary_unary_rpc_method_handler(batcher.translate)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("peer.Translation", {"Translate": method})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
