"""A stream of requests, each of which is a call: with its own record, its own outcome, and an answer of its own.

The stream itself is no call. It ends when its client has ended sending and all its calls are answered, when the client
cancels it, or when the server refuses new calls: then with UNAVAILABLE, and the client turns to another server.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import Message

from dragoman.server.errors import Draining
from dragoman.server.fronts.grpc.draining import CallGate
from dragoman.server.fronts.grpc.status import to_status
from dragoman.server.requests.failures import Failure
from dragoman.server.requests.record import CallRecord
from dragoman.server.requests.recorder import CallRecorder

__all__ = ["RequestStreams", "StreamedCall"]

ARRIVED_S = 0.05
"""How long a stream is still read once the server refuses new calls: requests that have arrived are answered."""

MAX_RUNNING_BYTES = 4 * 1024 * 1024
"""The most bytes of a stream's messages whose calls run: from there on none is read. One stream holds no more
memory here than a call of one message does."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Answer: TypeAlias = Callable[[CallRecord, Any, Any], Awaitable[Any]]
StreamFailure: TypeAlias = Callable[[str, Failure], Message]


class RequestStreams:
    """Makes behaviours of methods that take a stream of requests."""

    def __init__(self, recorder: CallRecorder, gate: CallGate, max_calls: int) -> None:
        """Let `max_calls` calls of one stream run at one time: further messages stay with the client."""
        self.recorder = recorder
        self.max_calls = max_calls
        self._gate = gate

    def naming(self, request_id: Callable[[Any], str], answer: Answer) -> Answer:
        """Returns the rest of a chain that keeps what the client calls its request, should it fail."""

        async def named(record: CallRecord, request: Any, call: "StreamedCall") -> Any:
            call.request_id = request_id(request)
            return await answer(record, request, call)

        return named

    def around(
        self, method: str, answer: Answer, failure_message: StreamFailure
    ) -> Callable[[Any, Context], Awaitable[None]]:
        """Returns a behaviour that has each message answered by `answer`, the chain of `method`.

        `failure_message` makes the response to a request that failed, of its id.
        """

        async def streamed(_: Any, context: Context) -> None:
            stream = _Stream(self, method, answer, failure_message, context)
            async with asyncio.TaskGroup() as calls:
                is_drained = await self._read(stream, calls)
            if is_drained:
                with contextlib.suppress(grpc.aio.InternalError):  # the client may have ended it first
                    await context.abort_with_status(to_status(Failure.of(Draining())))

        return streamed

    async def _read(self, stream: "_Stream", calls: asyncio.TaskGroup) -> bool:
        """Begin a call for each message; returns whether that ended because the server refuses new calls."""
        reading = asyncio.create_task(stream.read(calls))
        closed = asyncio.create_task(self._gate.wait_until_closed())
        try:
            await asyncio.wait([reading, closed], return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                return False
            stream.count_as_running()
            await asyncio.wait([reading], timeout=ARRIVED_S)
            return True
        finally:
            reading.cancel()
            closed.cancel()


class StreamedCall:
    """A call of a stream, as `grpc.aio.ServicerContext` is for any other call.

    Attributes:
        request_id: what the client calls it; "" where it gave no name, or its message was not read.
    """

    def __init__(self, context: Context, turn: asyncio.Lock) -> None:
        self.request_id = ""
        self._context = context
        self._turn = turn

    def __getattr__(self, name: str) -> Any:
        """Peer, metadata and deadline are those of the stream."""
        return getattr(self._context, name)

    async def write(self, message: Message) -> None:
        """Send a response, when those of other calls of the stream have been sent."""
        async with self._turn:
            await self._context.write(message)


class _Stream:
    """One stream of requests for `method`, each answered by `answer`."""

    def __init__(
        self,
        streams: RequestStreams,
        method: str,
        answer: Answer,
        failure_message: StreamFailure,
        context: Context,
    ) -> None:
        self._recorder = streams.recorder
        self._method = method
        self._answer = answer
        self._failure_message = failure_message
        self._context = context
        self._metadata: Any = context.invocation_metadata() or ()
        self._turn = asyncio.Lock()
        self._max_calls = streams.max_calls
        self._num_calls = 0
        self._num_bytes = 0
        self._ended = asyncio.Event()

    async def read(self, calls: asyncio.TaskGroup) -> None:
        """Begin a call for each message that comes, until the client ends sending."""
        while True:
            while self._num_calls >= self._max_calls or self._num_bytes >= MAX_RUNNING_BYTES:
                self._ended.clear()
                await self._ended.wait()
            message = await self._context.read()
            if message is grpc.aio.EOF:
                return
            self._num_calls += 1
            self._num_bytes += len(message)
            calls.create_task(self._call(message))

    def count_as_running(self) -> None:
        """Have the end of the server wait for the end of the stream."""
        self._recorder.in_flight.begin()
        self._context.add_done_callback(lambda _: self._recorder.in_flight.end())  # type: ignore[arg-type]

    async def _call(self, message: bytes) -> None:
        record = self._recorder.begin(self._method, self._context.time_remaining(), metadata=self._metadata)
        call = StreamedCall(self._context, self._turn)
        num_bytes = len(message)
        try:
            with record:
                try:
                    await self._answer(record, message, call)
                except grpc.aio.InternalError as error:  # the stream has ended
                    raise asyncio.CancelledError from error
            if record.failure is not None:
                del message  # a client that does not read its failures holds no messages here
                with contextlib.suppress(grpc.aio.InternalError):
                    await call.write(self._failure_message(call.request_id, record.failure))
        finally:
            self._recorder.in_flight.end()
            self._num_calls -= 1
            self._num_bytes -= num_bytes
            self._ended.set()
