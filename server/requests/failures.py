"""From the exception tree to what a caller gets: one table of codes, and the details that clients can act on."""

from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

from dragoman.server.errors import (
    AnswerTooLarge,
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineError,
    EngineUnavailable,
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    RequestError,
    Unauthenticated,
)
from dragoman.server.operations.metrics import RejectionReason

__all__ = ["CODES", "Code", "Failure", "rejection_reason"]

Code: TypeAlias = Literal[
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "INTERNAL",
]
"""Names of google.rpc.Code, which also says what each is in HTTP."""

CODES: dict[type[RequestError], Code] = {
    InvalidRequest: "INVALID_ARGUMENT",
    AnswerTooLarge: "INVALID_ARGUMENT",
    Unauthenticated: "UNAUTHENTICATED",
    PermissionDenied: "PERMISSION_DENIED",
    ModelNotFound: "NOT_FOUND",
    Overloaded: "RESOURCE_EXHAUSTED",
    Draining: "UNAVAILABLE",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
    Cancelled: "CANCELLED",
    EngineUnavailable: "UNAVAILABLE",
    EngineError: "INTERNAL",
}

_REJECTIONS: dict[type[RequestError], RejectionReason] = {
    # A passed deadline is counted where it is known whether the call had begun.
    InvalidRequest: "invalid",
    ModelNotFound: "invalid",
    Overloaded: "queue_full",
    Draining: "draining",
}


def rejection_reason(error: RequestError) -> RejectionReason | None:
    """Returns why the call was refused, or None when it was not: work had begun."""
    return _REJECTIONS.get(type(error))


@dataclass(frozen=True, slots=True)
class Failure:
    """What a caller gets instead of an answer: data, which holds nothing of the request or of a traceback.

    Attributes:
        code: one for each kind of error.
        message: for people.
        violations: rules that the request breaks, by field.
        retry_delay_s: how long the client should wait before it tries again; None: trying again does not help.
    """

    code: Code
    message: str
    violations: tuple[FieldViolation, ...] = ()
    retry_delay_s: float | None = None

    @classmethod
    def of(cls, error: RequestError) -> Self:
        """The failure that `error` is to the caller. The message of an `EngineError` stays here: use `internal`."""
        assert not isinstance(error, EngineError), "internals are for the log"
        return cls(
            CODES[type(error)],
            str(error),
            violations=error.violations if isinstance(error, InvalidRequest) else (),
            retry_delay_s=error.retry_delay_s if isinstance(error, Overloaded) else None,
        )

    @classmethod
    def internal(cls, request_id: str) -> Self:
        """The failure that any fault of ours is to the caller: it says nothing but where the log has the rest."""
        return cls("INTERNAL", f"internal error; the server's log has it under request id {request_id}")
