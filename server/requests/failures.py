"""From the exception tree to what a caller gets: one table of codes, and the details that clients can act on."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias

from dragoman.server.errors import (
    AnswerTooLarge,
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineError,
    EngineUnavailable,
    FailedChange,
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    RequestError,
    Unauthenticated,
)
from dragoman.server.operations.metrics import RejectionReason

__all__ = ["CODES", "Code", "Failure", "reason_of", "rejection_reason"]

Code: TypeAlias = Literal[
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
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
    FailedChange: "FAILED_PRECONDITION",
    Overloaded: "RESOURCE_EXHAUSTED",
    RateLimited: "RESOURCE_EXHAUSTED",
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


_OTHER_REASONS: dict[type[RequestError], str] = {EngineError: "INTERNAL"}
_MAX_VALUE_CHARACTERS = 64
"""The longest value in the metadata of a reason. A caller's own value may be one."""


def reason_of(kind: type[RequestError]) -> str:
    """Returns the reason that callers get with an error of this kind: with `ModelNotFound` it is MODEL_NOT_FOUND.

    docs/errors.md lists them. Programs compare it: a class that gets another name keeps its reason in `_OTHER_REASONS`.
    """
    return _OTHER_REASONS.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()


def rejection_reason(error: RequestError) -> RejectionReason | None:
    """Returns why the call was refused, or None when it was not: work had begun."""
    return _REJECTIONS.get(type(error))


@dataclass(frozen=True, slots=True)
class Failure:
    """The error that a caller gets instead of an answer: data, which holds nothing of the request or of a traceback.

    Attributes:
        code: one for each kind of error.
        message: for people.
        violations: rules that the request breaks, by field.
        retry_delay_s: how long the client should wait before it tries again; None: the server knows no time.
        reason: for programs: one for each kind of error, and more exact than the code.
        metadata: short facts that belong to the reason.
    """

    code: Code
    message: str
    violations: tuple[FieldViolation, ...] = ()
    retry_delay_s: float | None = None
    reason: str = "INTERNAL"
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: RequestError, refusal: str | None = None) -> Self:
        """The failure that `error` is to the caller. The message of an `EngineError` stays here: use `internal`.

        `refusal` is the reason by which the metrics count a call that was refused before it began.
        """
        assert not isinstance(error, EngineError), "internals are for the log"
        return cls(
            CODES[type(error)],
            str(error),
            violations=error.violations if isinstance(error, InvalidRequest) else (),
            retry_delay_s=error.retry_delay_s if isinstance(error, Overloaded) else None,
            reason=reason_of(type(error)),
            metadata=_metadata(error, refusal),
        )

    @classmethod
    def internal(cls, request_id: str) -> Self:
        """The failure that any fault of ours is to the caller: it says nothing but where the log has the rest."""
        message = f"internal error; the server's log has it under request id {request_id}"
        return cls("INTERNAL", message, metadata={"request_id": request_id})


def _metadata(error: RequestError, refusal: str | None) -> dict[str, str]:
    metadata = {} if refusal is None else {"refusal": refusal}
    if isinstance(error, ModelNotFound):
        metadata["model"] = error.requested[:_MAX_VALUE_CHARACTERS]
    return metadata
