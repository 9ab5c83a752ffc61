"""The gRPC front: one gRPC server with all services, its calls in flight, its health and its end."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2_grpc

from dragoman.server.config import ServerSettings
from dragoman.server.fronts.grpc.authentication import Guard, GuardedServer, authenticator_of
from dragoman.server.fronts.grpc.chains import InterceptedServer, Interceptors
from dragoman.server.fronts.grpc.credentials import server_credentials
from dragoman.server.fronts.grpc.dragoman_v1.generation import GenerationServicer
from dragoman.server.fronts.grpc.dragoman_v1.model import ModelServicer
from dragoman.server.fronts.grpc.dragoman_v1.protocol import DECODING_METHODS, PROTOCOL
from dragoman.server.fronts.grpc.dragoman_v1.rehearsal import rehearse
from dragoman.server.fronts.grpc.dragoman_v1.translation import TranslationServicer
from dragoman.server.fronts.grpc.draining import CallGate, GrpcStop
from dragoman.server.fronts.grpc.health import HealthServicer
from dragoman.server.fronts.grpc.listening import (
    bind,
    channel_options,
    count_of_started_calls,
    grpc_server_ids,
    max_streams,
)
from dragoman.server.fronts.grpc.open_inference import protocol as open_inference
from dragoman.server.fronts.grpc.open_inference.service import InferenceServicer, ReadStatistics
from dragoman.server.fronts.grpc.reflection import add_reflection
from dragoman.server.fronts.grpc.server import make_server
from dragoman.server.lifecycle import Lifecycle
from dragoman.server.models.changes import ForbiddenChanges, ModelChanges
from dragoman.server.models.registry import Registry
from dragoman.server.models.served_model import ServedModel
from dragoman.server.operations.metrics import UNKNOWN_MODEL, Metrics, RejectionReason
from dragoman.server.operations.statistics import ModelStatistics, read_statistics
from dragoman.server.processes.linux import trim_memory
from dragoman.server.requests.client_limits import ClientLimits, Elsewhere
from dragoman.server.requests.recorder import CallRecorder
from dragoman.server.requests.runtime import Runtime
from dragoman.server.scopes import Scope
from dragoman.server.security.credentials import Credentials
from dragoman.server.settings.admission import AdmissionSettings
from dragoman.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    translation_pb2,
    translation_pb2_grpc,
)

if TYPE_CHECKING:
    from dragoman.server.operations.spans import Tracing

__all__ = ["INFERENCE_METHODS", "RELOADABLE_KEYS", "SERVICE_NAMES", "GrpcFront"]

SERVICE_NAMES = (
    translation_pb2.DESCRIPTOR.services_by_name["TranslationService"].full_name,
    generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
    model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    open_inference.SERVICE_NAME,
)

INFERENCE_METHODS = frozenset(open_inference.DECODING_METHODS).union(*DECODING_METHODS.values())

RELOADABLE_KEYS = frozenset(
    {
        "logging.level",
        "logging.request_content",
        "admission.burst_tokens_a_client",
        "admission.max_calls_a_client",
        "admission.tokens_a_second_a_client",
        "server.drain_delay_s",
        "server.drain_timeout_s",
        "server.max_concurrent_calls",
    }
)
"""Settings that `GrpcFront.use` takes up."""

_log = structlog.get_logger(__name__)


class GrpcFront:
    """Answers calls over gRPC from `start` to `end`.

    Attributes:
        port: the bound one, once started.
    """

    def __init__(
        self,
        settings: ServerSettings,
        credentials: Credentials,
        lifecycle: Lifecycle,
        metrics: Metrics,
        on_crash: Callable[[BaseException], object],
        *,
        num_fronts: int = 1,
        tracing: "Tracing | None" = None,
        read_statistics: ReadStatistics | None = None,
    ) -> None:
        """Believe callers by `credentials`, and trace calls with `tracing`.

        `lifecycle` says which calls are answered; `on_crash` is called when no more calls can be accepted.

        This is one of `num_fronts` of the server, which share its port and its slots. `read_statistics` returns the
        figures of all of them; None: `metrics` has all.
        """
        self.port = 0
        self._listen = settings.server
        self._logs_content = settings.logging.request_content
        self._credentials = credentials
        # Nobody without credentials may change what is served, unless the settings allow changes at all.
        open_scopes = {Scope.INFER, Scope.ADMIN} if settings.models.allow_changes else {Scope.INFER}
        self._authenticator = authenticator_of(
            settings.security,
            credentials,
            open_scopes,
            ipv6_prefix_bits=settings.admission.ipv6_prefix_bits,
        )
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._on_crash = on_crash
        self._num_fronts = num_fronts
        self._tracing = tracing
        self._read_statistics = read_statistics or self._read_own_statistics
        self._statistics_turn = asyncio.Lock()
        self._limits = ClientLimits()
        self._limit_clients(settings.admission)
        self._weights = settings.engine.priority_weights
        self._guard = Guard(self._authenticator, frozenset({Scope.INFER, Scope.ADMIN}), self._count_refusal)
        self._health = HealthServicer(("", *SERVICE_NAMES), self._guard)
        self._num_taken_up = 0
        self._stop: GrpcStop | None = None
        self._trimming: asyncio.Task[None] | None = None
        self._recorder: CallRecorder | None = None

    async def start(self, registry: Registry, port: int, changes: ModelChanges | None = None) -> None:
        """Listen on `port`, and answer calls for the models of `registry`, also for those that come later.

        `changes` makes the changes that callers ask for; None: there are none.

        Raises:
            AddressError: the port is in use.
        """
        recorder = self._recorder = CallRecorder(
            self._metrics,
            {},
            max_calls=self._listen.max_concurrent_calls,
            logs_content=self._logs_content,
            tracing=self._tracing,
            limits=self._limits,
            weights=self._weights,
        )

        def expect(model: ServedModel) -> None:
            # A call waits for slots that the calls of all fronts use: as many come to each, so each has its part.
            recorder.expect(model.name, max(1, model.engine.occupancy().slots_total // self._num_fronts))
            methods = (*DECODING_METHODS[model.manifest.task], *open_inference.DECODING_METHODS)
            self._metrics.expect_calls(model.name, methods)

        for model in registry.models:
            expect(model)
        registry.when_added.append(expect)
        for model in registry.models:
            await self._rehearse(model)
        registry.before_added.append(self._rehearse)
        gate = CallGate()
        num_streams = max_streams(
            self._listen, sum(model.engine.occupancy().slots_total for model in registry.models)
        )
        server = self._make_server(num_streams)
        interceptors = self._interceptors(recorder, gate, num_streams)
        self._add_services(server, registry, changes or ForbiddenChanges(), interceptors)
        self.port = bind(server, self._listen.host, port, server_credentials(self._credentials))
        self._health.follow(registry)
        self._health.set_serving(serving=not self._lifecycle.is_failing)
        await server.start()
        self._stop = GrpcStop(server, recorder.in_flight, gate)
        # gRPC's and Python's allocators keep what a flood of calls took, in pieces, and ever more of them.
        self._trimming = asyncio.create_task(
            recorder.in_flight.at_rest(lambda: asyncio.to_thread(trim_memory))
        )

    async def _rehearse(self, model: ServedModel) -> None:
        await rehearse(model, self._listen.max_inputs, self._listen.max_message_bytes)

    def use(self, settings: ServerSettings) -> None:
        """Go by `settings` from now on, which differ from those before in `RELOADABLE_KEYS` alone."""
        self._listen, self._logs_content = settings.server, settings.logging.request_content
        if (recorder := self._recorder) is not None:
            recorder.in_flight.max_calls = self._listen.max_concurrent_calls
            recorder.log.shows_content = self._logs_content
            recorder.log.renew()
        self._limit_clients(settings.admission)

    def count_clients_with(self, elsewhere: Elsewhere) -> None:
        """Count what clients do together with the other fronts, from the first call on."""
        self._limits.elsewhere = elsewhere

    def _limit_clients(self, admission: AdmissionSettings) -> None:
        self._limits.change(
            max_calls=admission.max_calls_a_client,
            tokens_a_second=admission.tokens_a_second_a_client,
            burst_tokens=admission.burst_tokens,
        )

    def show_health(self) -> None:
        """Let every watcher of health know whether this server is ready. Calls are answered anyhow."""
        self._health.set_serving(serving=self._lifecycle.is_ready)

    async def drain(self) -> None:
        """Go on serving for `drain_delay_s`. Then refuse new calls and let running ones end in `drain_timeout_s`."""
        if self._stop is None:
            return
        listen = self._listen
        self._metrics.show_drain(listen.drain_delay_s + listen.drain_timeout_s)
        _log.info("draining", running=self._stop.num_running, delay_s=listen.drain_delay_s)
        await asyncio.sleep(listen.drain_delay_s)
        if num_running := await self._stop.drain(listen.drain_timeout_s):
            self._metrics.drain_cancelled_calls.inc(num_running)
            _log.warning("drain_timeout", cancelled=num_running, timeout_s=listen.drain_timeout_s)

    async def end(self) -> bool:
        """End whatever still runs, within seconds; returns whether gRPC has ended."""
        if self._trimming is not None:
            self._trimming.cancel()
        return self._stop is None or await self._stop.end()

    def _interceptors(self, recorder: CallRecorder, gate: CallGate, num_streams: int) -> Interceptors:
        return Interceptors(
            recorder,
            gate,
            self._authenticator,
            max_inputs=self._listen.max_inputs,
            max_message_bytes=self._listen.max_message_bytes,
            max_streams=num_streams,
        )

    def _make_server(self, num_streams: int) -> grpc.aio.Server:
        ids_before = grpc_server_ids()
        server = make_server(
            channel_options(self._listen, num_streams, shares_port=self._num_fronts > 1),
            on_crash=self._on_crash,
            on_call=self._count_call,
        )
        count_started = count_of_started_calls(grpc_server_ids() - ids_before)
        self._metrics.watch_arrivals(count_started, lambda: self._num_taken_up)
        return server

    def _count_call(self) -> None:
        """Count a call that gRPC has handed over."""
        self._num_taken_up += 1

    def _add_services(
        self,
        server: grpc.aio.Server,
        registry: Registry,
        changes: ModelChanges,
        interceptors: Interceptors,
    ) -> None:
        listen = self._listen
        runtime = Runtime(
            registry,
            self._lifecycle,
            max_inputs=listen.max_inputs,
            max_message_bytes=listen.max_message_bytes,
        )
        intercepted: Any = InterceptedServer(server, interceptors, PROTOCOL)
        inference = InferenceServicer(
            runtime, self._lifecycle, changes, self._read_statistics, max_inputs=listen.max_inputs
        )
        translation_pb2_grpc.add_TranslationServiceServicer_to_server(
            TranslationServicer(runtime), intercepted
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(runtime), intercepted)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(registry, changes), intercepted)
        open_inference.add_service(
            inference, InterceptedServer(server, interceptors, open_inference.PROTOCOL)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        add_reflection(
            GuardedServer(server, self._guard),
            (*SERVICE_NAMES, health.SERVICE_NAME),
            [open_inference.PROTOCOL.pool],
        )

    async def _read_own_statistics(self) -> Mapping[str, ModelStatistics]:
        async with self._statistics_turn:  # one thread, however many ask
            return await asyncio.to_thread(read_statistics, self._metrics, INFERENCE_METHODS)

    def _count_refusal(self, reason: RejectionReason) -> None:
        self._metrics.count_rejected(UNKNOWN_MODEL, reason)
