"""A bundle's engine and services in this process, and a channel to them without a socket.

The services are those of `dragoman.server.app`, and so is everything behind them: the same rules, the same engine, the
same answers. Only the transport is missing: messages are handed over as they are.
"""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import structlog

from dragoman.common.cpu import cpu_limit_cores
from dragoman.server.config import EngineSettings, ListenSettings
from dragoman.server.engine.threads import CLOSE_LIMIT_S
from dragoman.server.errors import EngineError, Overloaded, RequestError
from dragoman.server.fronts.grpc.dragoman_v1.generation import GenerationServicer
from dragoman.server.fronts.grpc.dragoman_v1.model import ModelServicer
from dragoman.server.fronts.grpc.dragoman_v1.rehearsal import rehearse
from dragoman.server.fronts.grpc.dragoman_v1.translation import TranslationServicer
from dragoman.server.fronts.grpc.status import to_status
from dragoman.server.lifecycle import Lifecycle, Phase
from dragoman.server.models.changes import ForbiddenChanges
from dragoman.server.models.registry import Lease, Registry
from dragoman.server.models.served_model import ServedModel
from dragoman.server.models.threaded import ThreadedModels
from dragoman.server.operations.metrics import Metrics
from dragoman.server.requests.failures import Failure
from dragoman.server.requests.runtime import Runtime
from dragoman.v1 import generation_pb2_grpc, model_pb2_grpc, translation_pb2_grpc

__all__ = ["InProcessChannel", "InProcessServer"]

_FOREVER_S = 1e9
"""A timeout of at least this long (30 years) is none."""

_ROOM_PAUSE_S = 0.02

Behaviour = Callable[[Any, Any], Awaitable[Any]]


class InProcessServer:
    """One bundle, loaded and checked as a server does it. Calls name no model: there is only this one.

    Attributes:
        model: the bundle and its engine.
    """

    def __init__(self, bundle: Path, settings: EngineSettings) -> None:
        """Load the bundle in the folder `bundle` and start its lanes.

        Raises:
            BundleError: the bundle is corrupt, or gives other answers than it did when it was made.
            ProviderUnavailable: the execution provider cannot be had here.
        """
        _quieten_logs()
        self._models = ThreadedModels(settings)
        try:
            self.model, self._behaviours = self._load(bundle)
        except BaseException:  # an interrupt, too: nobody else knows these lanes
            self.close()
            raise

    def _load(self, bundle: Path) -> tuple[ServedModel, dict[str, Behaviour]]:
        """Returns the model, rehearsed, and the methods of its services by their paths."""
        self._models.load(bundle)
        [served] = self._models.connect(Metrics(cpu_limit_cores()))
        model = replace(served, name=_as_text(served.name), version=_as_text(served.version))
        registry = _OneModel([model])
        lifecycle = Lifecycle()
        lifecycle.phase = Phase.SERVING
        max_inputs = ListenSettings().max_inputs
        # In a thread of its own: this one may have an event loop.
        with ThreadPoolExecutor(1, thread_name_prefix="rehearsal") as thread:
            thread.submit(asyncio.run, rehearse(model, max_inputs, None)).result()
        runtime = Runtime(registry, lifecycle, max_inputs=max_inputs)
        handlers: Any = _Handlers()
        translation_pb2_grpc.add_TranslationServiceServicer_to_server(TranslationServicer(runtime), handlers)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(runtime), handlers)
        model_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(registry, ForbiddenChanges()), handlers
        )
        return model, handlers.behaviours

    def channel(self) -> "InProcessChannel":
        """A channel for calls from one event loop, the same for all channels."""
        return InProcessChannel(self._behaviours)

    def close(self) -> None:
        """Stop the lanes; calls that still run fail."""
        self._models.close(CLOSE_LIMIT_S)


class InProcessChannel:
    """What the stubs of a `grpc.aio.Channel` need, with the services in this process behind it."""

    def __init__(self, behaviours: dict[str, Behaviour]) -> None:
        self._behaviours = behaviours

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Awaitable[Any]]:
        """A method that answers with one message."""
        behaviour = self._behaviours.get(path, _unimplemented)

        async def call(
            request: Any,
            *,
            timeout: float | None = None,  # noqa: ASYNC109  as gRPC has them
            wait_for_ready: bool = False,  # noqa: ARG001
            metadata: Any = None,  # noqa: ARG001
        ) -> Any:
            async with _errors_of_grpc(timeout):
                return await _once_there_is_room(behaviour, request, _Context(timeout, None))

        return call

    def unary_stream(self, path: str, *_: Any, **__: Any) -> "Callable[..., _Stream]":
        """A method that answers with several messages."""
        behaviour = self._behaviours.get(path, _unimplemented)

        def call(
            request: Any,
            *,
            timeout: float | None = None,
            wait_for_ready: bool = False,  # noqa: ARG001
            metadata: Any = None,  # noqa: ARG001
        ) -> _Stream:
            return _Stream(behaviour, request, timeout)

        return call

    async def close(self) -> None:
        """Nothing: whoever made the server closes it."""


class _Stream:
    """The messages of a call that runs in a task of its own until it ends, is cancelled or is dropped."""

    def __init__(self, behaviour: Behaviour, request: Any, timeout_s: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        # As many as one answer has pieces: the runtime joins what it cannot hand on, and here it always can.
        self._messages: asyncio.Queue[tuple[Any, BaseException | None]] = asyncio.Queue()
        self._end: BaseException | None = None
        self._task = self._loop.create_task(_run(behaviour, request, timeout_s, self._messages))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._end is not None:
            raise self._end
        message, self._end = await self._messages.get()
        if self._end is not None:
            raise self._end
        return message

    def cancel(self) -> bool:
        """Give up what has not come yet."""
        return self._task.cancel()

    def cancel_from_any_thread(self) -> None:
        """The same, from outside the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the task with it
            self._loop.call_soon_threadsafe(self._task.cancel)

    def __del__(self) -> None:
        self.cancel_from_any_thread()


async def _run(
    behaviour: Behaviour,
    request: Any,
    timeout_s: float | None,
    messages: "asyncio.Queue[tuple[Any, BaseException | None]]",
) -> None:
    """Put the call's messages into `messages`, and then how it ended."""

    async def write(message: Any) -> None:
        messages.put_nowait((message, None))

    try:
        async with _errors_of_grpc(timeout_s):
            await _once_there_is_room(behaviour, request, _Context(timeout_s, write))
    except asyncio.CancelledError as error:
        messages.put_nowait((None, error))
        raise
    except Exception as error:  # noqa: BLE001  the reader raises it
        messages.put_nowait((None, error))
    else:
        messages.put_nowait((None, StopAsyncIteration()))


async def _once_there_is_room(behaviour: Behaviour, request: Any, context: "_Context") -> Any:
    """Make the call again while there is no room for it: the caller that waits here has filled the queue itself.

    A server refuses in its place, so that another one may answer.
    """
    while True:
        try:
            return await behaviour(request, context)
        except Overloaded:
            await asyncio.sleep(_ROOM_PAUSE_S)


class _Context:
    """What a servicer asks of a call's context."""

    def __init__(self, timeout_s: float | None, write: Callable[[Any], Awaitable[None]] | None) -> None:
        self._end_s = None if timeout_s is None or timeout_s >= _FOREVER_S else time.monotonic() + timeout_s
        self._write = write

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, or None."""
        return None if self._end_s is None else max(0.0, self._end_s - time.monotonic())

    async def write(self, message: Any) -> None:
        """Send a message of a stream."""
        assert self._write is not None, "a method that answers with one message writes none"
        await self._write(message)


class _Handlers:
    """Collects what the generated code would register with a server."""

    def __init__(self) -> None:
        self.behaviours: dict[str, Behaviour] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Says the same in another way."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Keep the methods by their paths."""
        for name, handler in handlers.items():
            self.behaviours[f"/{service}/{name}"] = handler.unary_stream or handler.unary_unary


class _OneModel(Registry):
    """A registry in which a call without a model's name means the only model."""

    def lease(self, name: str, version: str = "", sticky_key: str | None = None) -> Lease:
        """A lease on the model."""
        return super().lease(name or self.models[0].name, version, sticky_key)


@contextlib.asynccontextmanager
async def _errors_of_grpc(timeout_s: float | None) -> AsyncIterator[None]:
    """Raise a failed call as gRPC would, with the same code, message and details."""
    try:
        async with asyncio.timeout(None if timeout_s is None or timeout_s >= _FOREVER_S else timeout_s):
            yield
    except EngineError as error:
        raise _rpc_error(grpc.StatusCode.INTERNAL, str(error)) from error
    except RequestError as error:
        status = to_status(Failure.of(error))
        raise _rpc_error(status.code, status.details, *status.trailing_metadata) from error
    except TimeoutError as error:
        raise _rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from error


def _rpc_error(code: grpc.StatusCode, details: str, *trailing: tuple[str, Any]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


async def _unimplemented(*_: Any) -> Any:
    raise _rpc_error(grpc.StatusCode.UNIMPLEMENTED, "a bundle in this process has no such method")


def _as_text(folder: str) -> str:
    """A folder's name as a message can hold it: its bytes need not be UTF-8."""
    return os.fsencode(folder).decode(errors="replace")


def _quieten_logs() -> None:
    """Only errors are logged, on standard error, unless the program has set up structlog itself."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
