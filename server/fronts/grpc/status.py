"""From the exception tree to gRPC statuses: one table, and the details that clients can act on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import Status, StatusCode
from grpc_status import rpc_status

from dragoman.server.errors import (
    AnswerTooLarge,
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestError,
)
from dragoman.server.operations.metrics import RejectionReason

__all__ = ["STATUS_CODES", "CallStatus", "internal_status", "rejection_reason", "status_code", "to_status"]

STATUS_CODES: dict[type[RequestError], StatusCode] = {
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    AnswerTooLarge: StatusCode.INVALID_ARGUMENT,
    ModelNotFound: StatusCode.NOT_FOUND,
    Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    Draining: StatusCode.UNAVAILABLE,
    DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    Cancelled: StatusCode.CANCELLED,
    EngineError: StatusCode.INTERNAL,
}
"""https://grpc.io/docs/guides/status-codes/"""

_REJECTIONS: dict[type[RequestError], RejectionReason] = {
    # A passed deadline is counted where it is known whether the call had begun.
    InvalidRequest: "invalid",
    ModelNotFound: "invalid",
    Overloaded: "queue_full",
    Draining: "draining",
}


def status_code(error: RequestError) -> StatusCode:
    """The one code of this kind of error."""
    return STATUS_CODES[type(error)]


def rejection_reason(error: RequestError) -> RejectionReason | None:
    """Why the call was refused, or None when it was not: work had begun."""
    return _REJECTIONS.get(type(error))


@dataclass(frozen=True)
class CallStatus(Status):
    """How a call ends: what `ServicerContext.abort_with_status` takes."""

    code: StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def to_status(error: RequestError) -> CallStatus:
    """Code, message and details (google.rpc.BadRequest, google.rpc.RetryInfo) for the caller.

    The message of an `EngineError` stays here: use `internal_status`.
    """
    assert not isinstance(error, EngineError), "internals are for the log"
    status = _status(status_code(error), str(error), _details(error))
    if not isinstance(error, Overloaded):
        return status
    # RetryInfo is for people and libraries; gRPC's own retries look at this key (gRFC A6).
    pushback = ("grpc-retry-pushback-ms", str(round(error.retry_delay_s * 1000)))
    return replace(status, trailing_metadata=(*status.trailing_metadata, pushback))


def internal_status(request_id: str) -> CallStatus:
    """What a caller is told of a failure of ours: nothing but where the log has it."""
    message = f"internal error; the server's log has it under request id {request_id}"
    return _status(StatusCode.INTERNAL, message, [])


def _status(code: StatusCode, message: str, details: Sequence[Message]) -> CallStatus:
    rich = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        rich.details.add().Pack(detail)
    plain = rpc_status.to_status(rich)
    return CallStatus(plain.code, plain.details, tuple(plain.trailing_metadata or ()))


def _details(error: RequestError) -> list[Message]:
    match error:
        case InvalidRequest():
            bad_request = error_details_pb2.BadRequest()
            for violation in error.violations:
                bad_request.field_violations.add(field=violation.field, description=violation.description)
            return [bad_request]
        case Overloaded():
            retry_info = error_details_pb2.RetryInfo()
            retry_info.retry_delay.FromNanoseconds(int(error.retry_delay_s * 1e9))
            return [retry_info]
        case _:
            return []
