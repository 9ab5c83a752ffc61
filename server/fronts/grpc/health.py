"""`grpc.health.v1.Health`: https://github.com/grpc/grpc/blob/master/doc/health-checking.md.

Each watcher waits for changes on its own. A client that does not read its stream holds up no other one, which
the servicer of grpcio-health-checking does not keep: it sends while it holds the lock that a change needs.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from dragoman.server.fronts.grpc.authentication import Guard
from dragoman.server.models.registry import Registry

__all__ = ["HealthServicer"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Says SERVING for all of `services`, or NOT_SERVING for all of them; and the same of each model that is served.

    Models go by `name` and by `name/version`. A model that could not be loaded, is drained or is unloaded is
    NOT_SERVING. What never was a model is unknown.

    Probes have no credentials: everybody may ask for a name that they know. The list of all names is for callers that
    pass `guard`, as the list of models is.
    """

    def __init__(self, services: Sequence[str], guard: Guard) -> None:
        self._services = frozenset(services)
        self._guard = guard
        self._is_serving = False
        self._watchers: set[asyncio.Event] = set()
        self._registry = Registry()
        self._models: set[str] = set()  # names and versions that there are or were

    def set_serving(self, *, serving: bool) -> None:
        """Change the status of the whole server and wake every watcher. Waits for none of them."""
        self._is_serving = serving
        self._wake()

    def follow(self, registry: Registry) -> None:
        """Say from now on what this registry has."""
        self._registry = registry
        registry.when_changed.append(self._note_models)
        self._note_models()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The status of one service or model, or NOT_FOUND."""
        if request.service not in self._services | self._models:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:64]!r}")
        return self._response(request.service)

    async def List(self, request: Any, context: Context) -> Any:  # not in the stubs yet
        """The status of every service and every model, for callers with credentials where authentication is on."""
        await self._guard.check(context)
        statuses = {name: self._response(name) for name in self._services | self._models}
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Send the status now and at each change. A slow reader gets the newest one only."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        sent = None
        try:
            while True:
                changed.clear()
                response = self._response(request.service)
                if response != sent:
                    await context.write(response)
                    sent = response
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _note_models(self) -> None:
        served = [(each.name, each.version) for each in self._registry.models]
        for name, version in [*served, *((each.name, each.version) for each in self._registry.not_loaded)]:
            self._models |= {name, f"{name}/{version}"} if version else {name}
        self._wake()

    def _wake(self) -> None:
        for changed in self._watchers:
            changed.set()

    def _response(self, service: str) -> HealthCheckResponse:
        if service in self._services:
            is_serving = self._is_serving
        elif service in self._models:
            is_serving = self._is_serving and self._is_served(service)
        else:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        status = HealthCheckResponse.SERVING if is_serving else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status)

    def _is_served(self, model: str) -> bool:
        return any(model in {each.name, f"{each.name}/{each.version}"} for each in self._registry.models)
