"""A bundle in this process: the engine that serves, and the calls of the clients, without a server.

    from dragoman import Translator

    with Translator("models/dates/1") as translator:
        print(translator.translate("le 3 mars 2024")[0].text)

This is the one module of the library that loads the server's packages, once a bundle is loaded: the extra `serve`
installs them.
"""

import asyncio
import contextlib
import math
import os
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, cast

import grpc
import grpc.aio

from dragoman.client.asynchronous import AsyncClient
from dragoman.client.blocking import Client
from dragoman.client.blocking_streams import Generation, TranslationStream
from dragoman.client.errors import CANCELLED_HERE
from dragoman.client.results import DecodingOptions, ModelInfo, Task, TextScore, Translation
from dragoman.common.errors import UsageError
from dragoman.common.extras import require_extra
from dragoman.server.config import EngineSettings

if TYPE_CHECKING:
    from dragoman.server.fronts.in_process import InProcessServer

__all__ = ["Generator", "Translator", "local_async_client", "local_client"]

_Result = TypeVar("_Result")


class _LocalModel:
    """A loaded bundle and a client of it."""

    _task: Task

    def __init__(self, bundle: str | Path, *, engine: Mapping[str, Any] | None = None) -> None:
        """Load the bundle in the folder `bundle` and check it as a server does.

        Args:
            bundle: MODELS/NAME/VERSION, as `dragoman export` writes it.
            engine: Settings of the engine, as the section `[engine]` of a server's configuration has them:
                {"lanes": 1}, {"provider": "cuda"}.

        Raises:
            BundleError: the folder holds no sound bundle.
            UsageError: the bundle does something else, or a setting does not fit.
            MissingExtraError: the extra `serve` is not installed.
        """
        settings = EngineSettings.load(dict(engine or {}), source="engine")
        self._engine = _RunningEngine(Path(bundle), settings)
        channel = cast("grpc.Channel", _BlockingChannel(self._engine))
        self._client = Client.over(channel, target=str(bundle), timeout_s=math.inf)
        self.model: ModelInfo = self._client.model("")
        if self.model.task is not self._task:
            self.close()
            raise UsageError(f"{bundle} is for {self.model.task}, not for {self._task}")

    def close(self) -> None:
        """Stop the engine; calls that still run fail."""
        self._client.close()
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Translator(_LocalModel):
    """Translates with a bundle in this process. Safe to share between threads.

    Calls, options, answers and errors are those of `dragoman.Client`; a call has no deadline unless it names one.

    Attributes:
        model: What the bundle is.
    """

    _task = Task.TRANSLATION

    def translate(
        self,
        texts: str | Sequence[str],
        *,
        target_prefixes: str | Sequence[str] = (),
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> list[Translation]:
        """Translate every text; see `dragoman.Client.translate`."""
        return self._client.translate(
            texts, model="", target_prefixes=target_prefixes, timeout_s=timeout_s, **options
        )

    def stream_translate(
        self,
        texts: str | Sequence[str],
        *,
        target_prefixes: str | Sequence[str] = (),
        timeout_s: float | None = None,
        **options: Unpack[DecodingOptions],
    ) -> TranslationStream:
        """Translate every text and give the answers piece by piece; see `dragoman.Client.stream_translate`."""
        return self._client.stream_translate(
            texts, model="", target_prefixes=target_prefixes, timeout_s=timeout_s, **options
        )

    def score_translations(
        self,
        sources: str | Sequence[str],
        targets: str | Sequence[str],
        *,
        num_alternatives: int = 0,
        timeout_s: float | None = None,
    ) -> list[TextScore]:
        """Return how probable given translations are; see `dragoman.Client.score_translations`."""
        return self._client.score_translations(
            sources, targets, model="", num_alternatives=num_alternatives, timeout_s=timeout_s
        )


class Generator(_LocalModel):
    """Generates text with a bundle in this process. Safe to share between threads.

    Calls, options, answers and errors are those of `dragoman.Client`; a call has no deadline unless it names one.

    Attributes:
        model: What the bundle is.
    """

    _task = Task.GENERATION

    def generate(
        self, prompt: str, *, timeout_s: float | None = None, **options: Unpack[DecodingOptions]
    ) -> Generation:
        """Continue a prompt, piece by piece; see `dragoman.Client.generate`."""
        return self._client.generate(prompt, model="", timeout_s=timeout_s, **options)

    def score_texts(
        self, texts: str | Sequence[str], *, num_alternatives: int = 0, timeout_s: float | None = None
    ) -> list[TextScore]:
        """Return how probable given texts are; see `dragoman.Client.score_texts`."""
        return self._client.score_texts(
            texts, model="", num_alternatives=num_alternatives, timeout_s=timeout_s
        )


@contextlib.asynccontextmanager
async def local_async_client(
    bundle: Path, settings: EngineSettings | None = None, *, timeout_s: float = math.inf
) -> AsyncIterator[AsyncClient]:
    """Give an asyncio client of the bundle in the folder `bundle`; calls name no model.

    Raises:
        BundleError: the folder holds no sound bundle.
    """
    # Not in a thread: an interrupt would wait for its end, and nothing else runs in this loop yet.
    server = _load(bundle, settings or EngineSettings())
    try:
        channel = cast("grpc.aio.Channel", server.channel())
        async with AsyncClient.over(channel, target=str(bundle), timeout_s=timeout_s) as client:
            yield client
    finally:
        await asyncio.to_thread(server.close)


@contextlib.contextmanager
def local_client(
    bundle: Path, settings: EngineSettings | None = None, *, timeout_s: float = math.inf
) -> Iterator[Client]:
    """Give a blocking client of the bundle in the folder `bundle`; calls name no model.

    Raises:
        BundleError: the folder holds no sound bundle.
    """
    engine = _RunningEngine(bundle, settings or EngineSettings())
    try:
        channel = cast("grpc.Channel", _BlockingChannel(engine))
        with Client.over(channel, target=str(bundle), timeout_s=timeout_s) as client:
            yield client
    finally:
        engine.close()


def _load(bundle: Path, settings: EngineSettings) -> "InProcessServer":
    require_extra("serve")
    from dragoman.server.fronts.in_process import InProcessServer  # noqa: PLC0415  not in every installation

    return InProcessServer(bundle, settings)


class _RunningEngine:
    """A bundle's engine with an event loop on a thread of its own, for callers that wait.

    The engine closes when its last reference goes. A notebook that makes many engines does not collect threads.
    """

    def __init__(self, bundle: Path, settings: EngineSettings) -> None:
        server = _load(bundle, settings)
        self.channel = server.channel()
        self._loop = asyncio.new_event_loop()
        self._process_id = os.getpid()
        thread = threading.Thread(target=self._loop.run_forever, name="local-model", daemon=True)
        try:
            thread.start()
        except BaseException:  # the system has no thread left for this process
            self._loop.close()
            server.close()
            raise
        self._finalizer = weakref.finalize(self, _shut_down_dropped, self._loop, thread, server)

    def close(self) -> None:
        """End all calls, the event loop and the engine; harmless when they have ended."""
        if alive := self._finalizer.detach():
            _shut_down(*alive[2])

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run `work` in the event loop and return its result. An interrupt of the caller cancels `work`.

        Raises:
            RuntimeError: this is a fork of the process that loaded the bundle.
        """
        if os.getpid() != self._process_id:
            work.close()
            raise RuntimeError("this bundle was loaded before the process forked; load it in this process")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _shut_down(loop: asyncio.AbstractEventLoop, thread: threading.Thread, server: "InProcessServer") -> None:
    """End all calls, the event loop and the engine. In a fork, which has none of the threads, nothing happens."""
    if not thread.is_alive():
        return

    async def cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(cancel_all(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    server.close()


def _shut_down_dropped(*parts: Any) -> None:
    """Shut down an engine that was collected. That may happen on one of its own threads, which are daemons."""
    if threading.current_thread().daemon:
        threading.Thread(target=_shut_down, args=parts, name="close-local-model").start()
    else:
        _shut_down(*parts)


class _BlockingChannel:
    """The part of a `grpc.Channel` that stubs use: the channel in this process, for callers that wait."""

    def __init__(self, engine: _RunningEngine) -> None:
        self._engine = engine

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Any:
        """A method that answers with one message."""
        method = self._engine.channel.unary_unary(path)

        async def ask(request: Any, settings: dict[str, Any]) -> Any:
            return await method(request, **settings)

        def call(request: Any, **settings: Any) -> Any:
            with _cancelled_as_grpc():
                return self._engine.run(ask(request, settings))

        return call

    def unary_stream(self, path: str, *_: Any, **__: Any) -> Any:
        """A method that answers with several messages."""
        method = self._engine.channel.unary_stream(path)

        async def begin(request: Any, settings: dict[str, Any]) -> Any:
            return method(request, **settings)

        return lambda request, **settings: _BlockingCall(
            self._engine.run(begin(request, settings)), self._engine
        )

    def close(self) -> None:
        """Nothing: `local_client` closes what there is."""


class _BlockingCall:
    """The messages of a call, for a caller that waits for each."""

    def __init__(self, call: Any, engine: _RunningEngine) -> None:
        self._call = call
        self._engine = engine  # it lives as long as the call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        with _cancelled_as_grpc():
            message = self._engine.run(self._next_or_none())
        if message is None:
            raise StopIteration
        return message

    async def _next_or_none(self) -> Any:
        return await anext(self._call, None)

    def cancel(self) -> bool:
        """Give up what has not come yet."""
        self._call.cancel_from_any_thread()
        return True


@contextlib.contextmanager
def _cancelled_as_grpc() -> Iterator[None]:
    try:
        yield
    except CancelledError as error:
        empty = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, empty, empty, CANCELLED_HERE) from error
