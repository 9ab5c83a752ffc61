"""The errors that a call can raise, and how a gRPC status becomes one.

    common.errors.DragomanError
    └── CallError                      .code .reason .target .message .violations .retry_delay_s .metadata
        ├── InvalidRequestError        also a UsageError: INVALID_ARGUMENT, OUT_OF_RANGE, FAILED_PRECONDITION
        │   └── MessageTooLargeError   RESOURCE_EXHAUSTED, a request or an answer has too many bytes
        ├── NotFoundError              also a UsageError: NOT_FOUND, no such model or version
        ├── UnauthenticatedError       also a UsageError: UNAUTHENTICATED, the token is missing, wrong or expired
        ├── PermissionDeniedError      also a UsageError: PERMISSION_DENIED, the token has not the scope
        ├── OverloadedError            also an OperationError: RESOURCE_EXHAUSTED with a delay, try again later
        ├── UnavailableError           also an OperationError: UNAVAILABLE, no server answers there
        ├── DeadlineExceededError      also an OperationError: DEADLINE_EXCEEDED
        ├── CallCancelledError         also an OperationError: CANCELLED
        └── ServerError                also an OperationError: every other status

The server's details (`google.rpc.BadRequest`, `RetryInfo`, `ErrorInfo`) travel in the trailing metadata as a
`google.rpc.Status`: https://google.aip.dev/193. RESOURCE_EXHAUSTED is an overload only where the server says when
to try again; gRPC itself has the same code for messages that are too long.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from dragoman.client.proxies import proxy_in_use
from dragoman.common.errors import DragomanError, OperationError, UsageError

__all__ = [
    "CallCancelledError",
    "CallError",
    "DeadlineExceededError",
    "FieldViolation",
    "InvalidRequestError",
    "MessageTooLargeError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "ServerError",
    "UnauthenticatedError",
    "UnavailableError",
    "call_errors",
    "error_from_call",
]

_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_DOMAIN = "dragoman"
CANCELLED_HERE = "Locally cancelled by application!"
"""The details that gRPC gives a call that its own caller cancelled. It has no code for the difference."""
_CANCELLED_HERE = frozenset({CANCELLED_HERE, "Channel closed!"})
_TOO_LARGE = re.compile(
    r"(?:(?P<side>SERVER|CLIENT): )?(?P<way>Received|Sent) message larger than max "
    r"\((?P<size>\d+) vs\. (?P<limit>\d+)\)"
)


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that the server refused, as `google.rpc.BadRequest` names it."""

    field: str
    description: str


class CallError(DragomanError):
    """A call that ended with a status other than OK.

    Attributes:
        code: The gRPC status code.
        target: The server that was called, as the caller wrote it.
        message: What the server (or, where none answered, gRPC) said.
        violations: The fields that were wrong, where the server named them.
        retry_delay_s: How long the server asks to wait before another try, in seconds.
        reason: Why the call failed, for programs (docs/errors.md): `MODEL_NOT_FOUND`. Empty where no Dragoman server
            said so.
        metadata: Facts that belong to the reason.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        target: str,
        violations: tuple[FieldViolation, ...] = (),
        retry_delay_s: float | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.target = target
        self.violations = violations
        self.retry_delay_s = retry_delay_s
        self.reason = reason
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        return self.message


class InvalidRequestError(CallError, UsageError):
    """The request can never succeed as it is; `violations` says which fields are wrong."""

    def __str__(self) -> str:
        further = [v for v in self.violations if v.description not in self.message]
        return "; ".join([self.message, *(f"{v.field}: {v.description}" for v in further)])


class MessageTooLargeError(InvalidRequestError):
    """The request or its answer has more bytes than the server or this client takes. Fewer texts a call have fewer."""


class NotFoundError(CallError, UsageError):
    """The server has no such model or version; the message lists what it has."""


class UnauthenticatedError(CallError, UsageError):
    """The server asks for a token or a certificate, and does not know this client's."""

    def __str__(self) -> str:
        return f"{self.target} asks who calls: {self.message}"


class PermissionDeniedError(CallError, UsageError):
    """The server knows this client, which lacks the scope for the call."""

    def __str__(self) -> str:
        return f"{self.target} does not allow this call: {self.message}"


class OverloadedError(CallError, OperationError):
    """The server has too much to do, also after the channel's own retries; try again after `retry_delay_s`."""


class UnavailableError(CallError, OperationError):
    """No server answers at the target, or it is shutting down."""

    def __str__(self) -> str:
        # gRPC's own report repeats itself before it comes to the address and the reason.
        reason = self.message.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
        return f"no answer from {self.target}: {reason}"


class DeadlineExceededError(CallError, OperationError):
    """The answer did not come within the call's timeout."""

    def __str__(self) -> str:
        return f"{self.target} did not answer in time: {self.message}"


class CallCancelledError(CallError, OperationError):
    """The call was cancelled before it ended, by this client, by the server or by a proxy between them."""

    def __str__(self) -> str:
        if self.message in _CANCELLED_HERE:
            return f"the call to {self.target} was cancelled"
        return (
            f"{self.target} or a proxy before it ended the call, possibly because it has too much to do or stops; "
            f"the call may be repeated: {self.message}"
        )


class ServerError(CallError, OperationError):
    """The server failed, or what answers at the target is no Dragoman server."""

    def __str__(self) -> str:
        if self.code is grpc.StatusCode.UNIMPLEMENTED:
            return f"{self.target} does not offer this call: {self.message}"
        return f"{self.target} failed with {self.code.name}: {self.message}"


_UNANSWERED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}

_ERROR_OF_CODE: dict[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
}


def error_from_call(error: grpc.RpcError, *, target: str, timeout_s: float | None = None) -> CallError:
    """The member of this module's tree that `error` stands for, its details decoded.

    Args:
        error: What a blocking or an asyncio call raised.
        target: The server that was called, as the caller wrote it.
        timeout_s: The call's timeout, for the message of a missed deadline.
    """
    code = error.code()
    message = error.details() or code.name
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s is not None:
        message = f"the timeout was {timeout_s:g} s"
    details = _details_of(error)
    kind = _ERROR_OF_CODE.get(code, ServerError)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        too_large = _TOO_LARGE.search(message)
        if too_large:
            kind, message = MessageTooLargeError, _sizes(too_large)
        elif details.retry_delay_s is not None:
            kind = OverloadedError
    elif code in _UNANSWERED and (proxy := proxy_in_use(target)):
        message += f" (through the proxy of {proxy}; set no_proxy to do without)"
    return kind(
        " ".join(message.split()),
        code=code,
        target=target,
        violations=tuple(details.violations),
        retry_delay_s=details.retry_delay_s,
        reason=details.reason,
        metadata=details.metadata,
    )


def _sizes(too_large: re.Match[str]) -> str:
    """A sentence of what gRPC reports as `SERVER: Sent message larger than max (5242880 vs. 4194304)`."""
    size, limit = int(too_large["size"]), int(too_large["limit"])
    is_request = (too_large["side"], too_large["way"]) in {("SERVER", "Received"), ("CLIENT", "Sent")}
    message_kind = "request" if is_request else "answer"
    side = "this client" if too_large["side"] == "CLIENT" else "the server"
    verb = "sends" if too_large["way"] == "Sent" else "takes"
    return f"the {message_kind} has {size:,} bytes, but {side} {verb} at most {limit:,}: ask for less in one call"


@contextlib.contextmanager
def call_errors(target: str, timeout_s: float) -> Iterator[None]:
    """Raise the error of a call in this block as a `CallError`; the arguments are those of `error_from_call`."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_from_call(error, target=target, timeout_s=timeout_s) from error


@dataclass
class _Details:
    """The details that the server sends beside code and message."""

    violations: list[FieldViolation] = field(default_factory=list)
    retry_delay_s: float | None = None
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


def _details_of(error: grpc.RpcError) -> _Details:
    details = _Details(retry_delay_s=_pushback_s(error))
    status = _rich_status(error)
    for detail in status.details if status else ():
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            details.violations += [
                FieldViolation(v.field, v.description) for v in bad_request.field_violations
            ]
        retry_info = error_details_pb2.RetryInfo()
        if detail.Unpack(retry_info):
            details.retry_delay_s = retry_info.retry_delay.ToTimedelta().total_seconds()
        error_info = error_details_pb2.ErrorInfo()
        if detail.Unpack(error_info) and error_info.domain == _DOMAIN:
            details.reason, details.metadata = error_info.reason, dict(error_info.metadata)
    return details


def _pushback_s(error: grpc.RpcError) -> float | None:
    """The delay that the server asks gRPC's own retries to keep; None where it asks for none, or for no retry."""
    for key, value in _trailers(error):
        if key == _PUSHBACK_KEY and isinstance(value, str) and value.isdecimal():
            return int(value) / 1000
    return None


def _rich_status(error: grpc.RpcError) -> status_pb2.Status | None:
    # grpc_status.rpc_status.from_call does the same but raises where a proxy has reworded the message.
    for key, value in _trailers(error):
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def _trailers(error: grpc.RpcError) -> Iterable[tuple[str, str | bytes]]:
    # Their type differs between blocking and asyncio calls; both are iterables of pairs.
    return cast("Any", error.trailing_metadata()) or ()
