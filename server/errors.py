"""What can go wrong while serving; `dragoman.server.fronts.grpc.status` maps each request error to one gRPC status
code.

DragomanError
├── UsageError
│   ├── BundleError       a bundle is missing, corrupt, or disagrees with its golden examples
│   │   └── IncompleteBundle  a file is missing, or is not what the manifest says: it may still be copied
│   ├── CredentialsError  a certificate, a key or a tokens file cannot be used
│   └── ModelsError       the models folder is missing or holds no model
├── OperationError
│   ├── AddressError      an address cannot be listened on (port in use)
│   ├── ProviderUnavailable  the execution provider asked for cannot be had, or not for this bundle
│   └── ResourceUnavailable  memory or threads that the settings ask for cannot be had
└── RequestError          one request goes wrong, the server lives on
    ├── InvalidRequest    a field breaks a rule: INVALID_ARGUMENT
    │   └── AnswerTooLarge    what it asks for does not fit into a message: INVALID_ARGUMENT
    ├── Unauthenticated   the call's credentials are missing or wrong: UNAUTHENTICATED
    ├── PermissionDenied  the caller may not do what it asks for: PERMISSION_DENIED
    ├── ModelNotFound     no such model or version: NOT_FOUND
    ├── FailedChange      a change of what is served failed, and nothing has changed: FAILED_PRECONDITION
    ├── Overloaded        the queue is full: RESOURCE_EXHAUSTED
    │   └── RateLimited       the client is beyond its limits: RESOURCE_EXHAUSTED
    ├── Draining          the server is shutting down: UNAVAILABLE
    ├── DeadlineExceeded  the caller's time ran out: DEADLINE_EXCEEDED
    ├── Cancelled         the caller left: CANCELLED
    ├── EngineUnavailable what computed it has gone: UNAVAILABLE, another try may be answered
    └── EngineError       our fault: INTERNAL, the details stay in the log
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dragoman.common.errors import DragomanError, OperationError, UsageError

__all__ = [
    "NOT_LOADED_REASONS",
    "AddressError",
    "AnswerTooLarge",
    "BundleError",
    "Cancelled",
    "CredentialsError",
    "DeadlineExceeded",
    "Draining",
    "EngineError",
    "EngineUnavailable",
    "FailedChange",
    "FieldViolation",
    "IncompleteBundle",
    "InvalidRequest",
    "ModelNotFound",
    "ModelsError",
    "NotLoadedReason",
    "Overloaded",
    "PermissionDenied",
    "ProviderUnavailable",
    "RateLimited",
    "RequestError",
    "ResourceUnavailable",
    "Unauthenticated",
]

NotLoadedReason = Literal[
    "not_a_model", "invalid_name", "unreadable", "duplicate_version", "broken", "unavailable", "incomplete"
]
NOT_LOADED_REASONS: tuple[NotLoadedReason, ...] = (
    "not_a_model",
    "invalid_name",
    "unreadable",
    "duplicate_version",
    "broken",
    "unavailable",
    "incomplete",
)
"""Why a folder of the models folder is not served."""

MAX_LISTED = 20
"""Most violations or models a message lists: gRPC clients refuse more than 8 KiB of trailing metadata."""

MAX_LISTED_BYTES = 6_000
"""Most bytes of these, so that a refusal is not itself refused by gRPC, as overload."""

MAX_SHOWN_CHARACTERS = 64
"""Longest part of a caller's own value that a message repeats."""


class BundleError(UsageError):
    """A bundle cannot be served: a file is missing or changed, or its golden examples disagree."""


class IncompleteBundle(BundleError):
    """A file of a bundle is missing or is not what the manifest says, as while the bundle is being copied."""


class ModelsError(UsageError):
    """The models folder is missing, unreadable or holds nothing to serve."""


class CredentialsError(UsageError):
    """A certificate, a key or a tokens file cannot be used; the message holds nothing of its content."""


class AddressError(OperationError):
    """A host and port cannot be listened on."""


class ProviderUnavailable(OperationError):
    """The execution provider asked for cannot be had here, or not for a bundle; nothing falls back silently."""


class ResourceUnavailable(OperationError):
    """Memory or threads that the settings ask for cannot be had here; the message says which setting to lower."""


class RequestError(DragomanError):
    """One request cannot be answered; the message is meant for the caller."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One broken rule.

    Attributes:
        field: where in the call: an attribute of `Call` or `ScoringCall` (`inputs[3]`, `options.top_p`), or "" for the
            whole. The front of a protocol puts its own names to it.
        description: what is wrong, with the value.
    """

    field: str
    description: str


class InvalidRequest(RequestError):
    """The request breaks one rule or more; all of them are listed, the first ones by name."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self._first = tuple(violations[:MAX_LISTED])
        self._num_violations = len(violations)
        super().__init__(self._message())

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """The violations that are listed: as many as a caller can be sent."""
        sizes = itertools.accumulate(map(_size_on_the_wire, self._first))
        return self._first[: max(1, sum(size <= MAX_LISTED_BYTES for size in sizes))]

    def rename_fields(self, name_of: Callable[[str], str]) -> None:
        """Put a protocol's names to the fields."""
        self._first = tuple(FieldViolation(name_of(each.field), each.description) for each in self._first)
        self.args = (self._message(),)

    def _message(self) -> str:
        listed = self.violations
        lines = [f"{violation.field}: {violation.description}" for violation in listed]
        if self._num_violations > len(listed):
            lines.append(f"and {self._num_violations - len(listed)} more")
        return "; ".join(lines)


class AnswerTooLarge(InvalidRequest):
    """The answer does not fit into a message, which showed while it was computed.

    An answer is a function of the request and the bundle alone, so that the same request never gets one.
    """

    def __init__(self, max_bytes: int) -> None:
        description = (
            f"the answer has more than {max_bytes} bytes, the longest message of this server; "
            "ask for fewer inputs, hypotheses, alternatives or tokens at a time"
        )
        super().__init__([FieldViolation("options", description)])


class Unauthenticated(RequestError):
    """The call has no credentials, or wrong ones. No message repeats them."""


class PermissionDenied(RequestError):
    """The caller lacks the scope that the call needs."""


class ModelNotFound(RequestError):
    """No model, or no version of it, is served under the name asked for; `why` it is not, if it is there."""

    def __init__(self, requested: str, available: Sequence[str], why: str = "") -> None:
        self.requested = requested
        self.available = tuple(available)
        self.why = why
        listed = ", ".join(self.available[:MAX_LISTED])
        if len(self.available) > MAX_LISTED:
            listed += f" and {len(self.available) - MAX_LISTED} more"
        because = f": {why}" if why else ""
        super().__init__(f"no model {shown(requested)}{because}; this server has: {listed}")


class FailedChange(RequestError):
    """A change of what is served cannot be made. What was served before is served on."""


class Overloaded(RequestError):
    """Too much work is waiting already; try again after `retry_delay_s` seconds."""

    def __init__(self, reason: str, retry_delay_s: float) -> None:
        self.reason = reason
        self.retry_delay_s = retry_delay_s
        super().__init__(reason)


class RateLimited(Overloaded):
    """The client has more calls, or has used more tokens, than one client may; others are answered."""


class Draining(RequestError):
    """The server is shutting down and takes no new work; another one may answer."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class DeadlineExceeded(RequestError):
    """The caller's deadline passed before the answer was complete."""

    def __init__(self, message: str = "the deadline passed before the answer was complete") -> None:
        super().__init__(message)


class Cancelled(RequestError):
    """The caller left; nobody reads this message."""

    def __init__(self, message: str = "the request was cancelled") -> None:
        super().__init__(message)


class EngineUnavailable(RequestError):
    """The lane that computed the request has ended, or the engine ends; nothing is wrong with the request."""


class EngineError(RequestError):
    """The engine failed. The message is for the log; callers get a generic one."""


def shown(value: str) -> str:
    """The caller's value as a message repeats it: quoted, one line, cut when it is long."""
    if len(value) > MAX_SHOWN_CHARACTERS:
        return repr(value[:MAX_SHOWN_CHARACTERS]) + "…"
    return repr(value)


def _size_on_the_wire(violation: FieldViolation) -> int:
    """Bytes of a violation in a status.

    It is in the message, where gRPC writes each byte beyond ASCII as three, and in the details, in base64.
    """
    encoded = f"{violation.field}: {violation.description}; ".encode()
    num_beyond_ascii = len(encoded) - sum(byte < 128 for byte in encoded)
    return len(encoded) + 2 * num_beyond_ascii + (len(encoded) + 8) * 4 // 3
