"""The switch of tracing. OpenTelemetry is imported only where it is on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dragoman.common.errors import MissingExtraError

if TYPE_CHECKING:
    from prometheus_client import Counter

    from dragoman.server.operations.spans import Tracing
    from dragoman.server.settings.tracing import TracingSettings

__all__ = ["start_tracing"]


def start_tracing(settings: TracingSettings, spans: Counter) -> Tracing | None:
    """Returns what traces calls; None: tracing is off. `spans` counts them by their `result`.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
        CredentialsError: the file with headers cannot be used.
    """
    if not settings.enabled:
        return None
    try:
        from dragoman.server.operations.spans import Tracing  # noqa: PLC0415  a tenth of a second
    except ModuleNotFoundError as error:
        message = f"tracing needs {error.name}, which is not installed: pip install 'dragoman[tracing]'"
        raise MissingExtraError(message, name=error.name) from error
    return Tracing(settings, spans)
