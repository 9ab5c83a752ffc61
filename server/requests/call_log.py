"""The line that a call gets in the log when it ends."""

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import structlog
from structlog.typing import FilteringBoundLogger

from dragoman.server.errors import EngineError, PermissionDenied, RateLimited, RequestError, Unauthenticated
from dragoman.server.operations.metrics import RejectionReason
from dragoman.server.operations.tracebacks import traceback_without_messages

__all__ = ["CallLog"]

_log = structlog.get_logger(__name__)

Fields: TypeAlias = Callable[[], dict[str, Any]]
"""Returns a call's fields. Most calls write no line, so theirs are never made."""


class CallLog:
    """Writes the lines of a front's calls.

    Attributes:
        shows_content: whether a line may repeat what callers sent.
    """

    def __init__(self, *, shows_content: bool) -> None:
        self.shows_content = shows_content
        self._log: FilteringBoundLogger
        self.renew()

    def renew(self) -> None:
        """Log as the logs are set up now: they settle on a logger once, not for every line."""
        self._log = _log.bind()

    def write_end(self, fields: Fields) -> None:
        """Write that a call was answered, or that its caller left."""
        if self._log.is_enabled_for(logging.DEBUG):
            self._log.debug("request", **fields())

    def write_refusal(self, fields: Fields, error: RequestError, reason: RejectionReason | None) -> None:
        """Write that a call ended with an error that is no fault of the server's."""
        if isinstance(error, (Unauthenticated, PermissionDenied, RateLimited)):
            # Counted. Whoever tries to get in, or more than is allowed, may not fill the log with it.
            if self._log.is_enabled_for(logging.DEBUG):
                self._log.debug("request", **fields(), reason=reason)
            return
        # Most messages repeat values of the caller.
        message = {"error": str(error)} if self.shows_content else {}
        self._log.warning("request", **fields(), kind=type(error).__name__, reason=reason, **message)

    def write_fault(self, fields: Fields, error: BaseException) -> None:
        """Write that a call ended with an error of the server's own."""
        if self.shows_content or isinstance(error, EngineError):
            self._log.error("request", **fields(), exc_info=error)
        else:
            self._log.error("request", **fields(), exception=traceback_without_messages(error))
