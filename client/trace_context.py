"""The trace context of the caller's program, as metadata of a call: https://www.w3.org/TR/trace-context/."""

import sys

__all__ = ["trace_metadata"]


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Returns what OpenTelemetry sends along with a call, so that the server's spans are children of the current one.

    A program without OpenTelemetry sends nothing, and nothing is imported for it: a span cannot be current before the
    program has imported `opentelemetry.trace`.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate, trace  # noqa: PLC0415

    if not trace.get_current_span().get_span_context().is_valid:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())
