"""A collector of OpenTelemetry's: the protocol's own TraceService over gRPC, which keeps what it is sent."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

PATIENCE_S = 20.0


@dataclass
class ReceivedSpan:
    """A span as it came."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    status: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    children: list["ReceivedSpan"] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    def named(self, name: str) -> list["ReceivedSpan"]:
        """Its children of that name, in the order of their starts."""
        return sorted((each for each in self.children if each.name == name), key=lambda each: each.start_ns)

    def all(self) -> Iterator["ReceivedSpan"]:
        yield self
        for child in self.children:
            yield from child.all()


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans and the headers that they came with."""

    def __init__(self) -> None:
        self.port = 0
        self.headers: dict[str, str] = {}
        self._spans: list[ReceivedSpan] = []
        self._changed = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._changed:
            self.headers = dict(context.invocation_metadata())
            for of_resource in request.resource_spans:
                resource = _values(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    self._spans += (_received(span, resource) for span in of_scope.spans)
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[ReceivedSpan]:
        with self._changed:
            return list(self._spans)

    def calls(self, count: int) -> list[ReceivedSpan]:
        """Waits until so many calls have come; returns their own spans, with all others below them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._of_calls()) >= count, PATIENCE_S)
            by_id = {span.span_id: span for span in self._spans}
            for span in self._spans:
                span.children.clear()
            for span in self._spans:
                if span.parent_id in by_id:
                    by_id[span.parent_id].children.append(span)
            return sorted(self._of_calls(), key=lambda span: span.start_ns)

    def _of_calls(self) -> list[ReceivedSpan]:
        # The span of a call ends last: its children have come.
        return [span for span in self._spans if span.kind == 2]


@contextlib.contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """A collector that listens."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def _received(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code,
        _values(span.attributes),
        resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
