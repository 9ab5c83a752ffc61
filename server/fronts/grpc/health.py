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

__all__ = ["HealthServicer"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Says SERVING for all of `services`, or NOT_SERVING for all of them."""

    def __init__(self, services: Sequence[str]) -> None:
        self._services = frozenset(services)
        self._is_serving = False
        self._watchers: set[asyncio.Event] = set()

    def set_serving(self, *, serving: bool) -> None:
        """Change the status and wake every watcher. Waits for none of them."""
        self._is_serving = serving
        for changed in self._watchers:
            changed.set()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The status of one service, or NOT_FOUND."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:64]!r}")
        return self._response(known=True)

    async def List(self, request: Any, context: Context) -> Any:  # not in the stubs yet
        """The status of every service."""
        statuses = dict.fromkeys(self._services, self._response(known=True))
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Send the status now and at each change. A slow reader gets the newest one only."""
        known = request.service in self._services
        changed = asyncio.Event()
        self._watchers.add(changed)
        sent = None
        try:
            while True:
                changed.clear()
                response = self._response(known=known)
                if response != sent:
                    await context.write(response)
                    sent = response
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _response(self, *, known: bool) -> HealthCheckResponse:
        if not known:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        serving = HealthCheckResponse.SERVING if self._is_serving else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=serving)
