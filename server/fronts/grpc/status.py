"""From a call's failure to its gRPC status, with the details that clients can act on."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import Status, StatusCode
from grpc_status import rpc_status

from dragoman.server.requests.failures import Failure

__all__ = ["DOMAIN", "CallStatus", "to_status"]

DOMAIN = "dragoman"
"""The domain of google.rpc.ErrorInfo: reasons are ours, and unique within it."""


@dataclass(frozen=True)
class CallStatus(Status):
    """How a call ends: what `ServicerContext.abort_with_status` takes."""

    code: StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def to_status(failure: Failure, more: tuple[tuple[str, str], ...] = ()) -> CallStatus:
    """Returns code, message and details (google.rpc.BadRequest, RetryInfo, ErrorInfo) for the caller.

    The trailing metadata also has `more`.
    """
    rich = status_pb2.Status(code=StatusCode[failure.code].value[0], message=failure.message)
    for detail in _details(failure):
        rich.details.add().Pack(detail)
    plain = rpc_status.to_status(rich)
    trailing = (*(plain.trailing_metadata or ()), *more)
    if failure.retry_delay_s is not None:
        # RetryInfo is for people and libraries; gRPC's own retries look at this key (gRFC A6).
        trailing = (*trailing, ("grpc-retry-pushback-ms", str(round(failure.retry_delay_s * 1000))))
    return CallStatus(plain.code, plain.details, trailing)


def _details(failure: Failure) -> Sequence[Message]:
    details: list[Message] = []
    if failure.violations:
        bad_request = error_details_pb2.BadRequest()
        for violation in failure.violations:
            bad_request.field_violations.add(field=violation.field, description=violation.description)
        details.append(bad_request)
    if failure.retry_delay_s is not None:
        retry_info = error_details_pb2.RetryInfo()
        retry_info.retry_delay.FromNanoseconds(int(failure.retry_delay_s * 1e9))
        details.append(retry_info)
    details.append(
        error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=failure.metadata)
    )
    return details
