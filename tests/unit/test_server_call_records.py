"""What becomes of a call, whatever it came by: its outcome, its counts, its line in the log."""

import asyncio
import io
import json
import time
from collections.abc import Iterator

import pytest
import structlog

from dragoman.server.config import LoggingSettings
from dragoman.server.errors import (
    DeadlineExceeded,
    Draining,
    EngineError,
    FieldViolation,
    InvalidRequest,
    Overloaded,
)
from dragoman.server.operations.logs import configure_logs
from dragoman.server.operations.metrics import Metrics
from dragoman.server.requests.record import CallRecord
from dragoman.server.requests.recorder import CallRecorder


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure_logs(LoggingSettings(format="json", level="debug"), stream)
    yield stream
    structlog.reset_defaults()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(1.0)


@pytest.fixture
def recorder(metrics: Metrics, log: io.StringIO) -> CallRecorder:
    return CallRecorder(metrics, {"dates": 4}, max_calls=2)


def begun(recorder: CallRecorder, remaining_s: float | None = None, model: str = "dates") -> CallRecord:
    """A call whose message has come."""
    record = recorder.begin("Translate", remaining_s)
    record.begin_message()
    record.name_model(model)
    return record


def counted(metrics: Metrics, model: str, code: str) -> float | None:
    labels = {"model": model, "method": "Translate", "code": code}
    return metrics.registry.get_sample_value("dragoman_requests_total", labels)


def rejected(metrics: Metrics, model: str, reason: str) -> float | None:
    stage = "arrival" if model == "unknown" else "admission"
    labels = {"model": model, "stage": stage, "reason": reason}
    return metrics.registry.get_sample_value("dragoman_rejected_requests_total", labels)


def test_an_answered_call(recorder: CallRecorder, metrics: Metrics, log: io.StringIO) -> None:
    with begun(recorder) as record:
        record.begin_answer()
    assert (record.code, record.failure) == ("OK", None)
    assert counted(metrics, "dates", "OK") == 1
    line = json.loads(log.getvalue())
    assert (line["event"], line["level"], line["code"]) == ("request", "debug", "OK")


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (InvalidRequest([FieldViolation("inputs", "is empty")]), "INVALID_ARGUMENT", "invalid"),
        (Overloaded("full", 2.0), "RESOURCE_EXHAUSTED", "queue_full"),
        (Draining(), "UNAVAILABLE", "draining"),
    ],
)
def test_a_refused_call(
    error: Exception, code: str, reason: str, recorder: CallRecorder, metrics: Metrics, log: io.StringIO
) -> None:
    with begun(recorder) as record:
        raise error
    assert record.failure is not None
    assert (record.failure.code, record.failure.message) == (code, str(error))
    assert record.failure.retry_delay_s == getattr(error, "retry_delay_s", None)
    assert record.failure.violations == getattr(error, "violations", ())
    assert counted(metrics, "dates", code) == rejected(metrics, "dates", reason) == 1
    assert json.loads(log.getvalue())["level"] == "warning"


@pytest.mark.parametrize(
    "error", [EngineError("at 0x7f: secret"), ValueError("secret"), BaseException("secret")]
)
def test_a_failure_of_ours_is_told_to_the_log_only(
    error: BaseException, recorder: CallRecorder, metrics: Metrics, log: io.StringIO
) -> None:
    with begun(recorder) as record:
        raise error
    assert record.failure is not None
    assert record.failure.code == "INTERNAL"
    line = json.loads(log.getvalue())
    assert line["request_id"] in record.failure.message
    is_about_a_lane = isinstance(error, EngineError)  # no words of a caller are there
    assert ("secret" in line["exception"]) is is_about_a_lane
    assert type(error).__name__ in line["exception"]
    assert "in test_a_failure_of_ours" in line["exception"]
    assert "secret" not in record.failure.message
    assert counted(metrics, "dates", "INTERNAL") == 1


@pytest.mark.parametrize(
    ("remaining_s", "code"), [(None, "CANCELLED"), (60.0, "CANCELLED"), (0.01, "DEADLINE_EXCEEDED")]
)
def test_a_cancelled_call_had_time_left_or_not(
    remaining_s: float | None, code: str, recorder: CallRecorder, metrics: Metrics
) -> None:
    record = begun(recorder, remaining_s)
    with pytest.raises(asyncio.CancelledError), record:
        raise asyncio.CancelledError
    assert (record.code, record.failure) == (code, None)
    assert counted(metrics, "dates", code) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_process_goes_on(error: type[BaseException], recorder: CallRecorder) -> None:
    record = begun(recorder)
    with pytest.raises(error), record:
        raise error
    assert record.failure is None


def test_a_call_that_is_late_or_one_too_many_is_refused_before_its_message(
    recorder: CallRecorder, metrics: Metrics
) -> None:
    with recorder.begin("Translate", 0.0) as late:
        late.admit()
    recorder.begin("Translate", None).admit()
    with recorder.begin("Translate", None) as third:
        third.admit()
    assert late.failure is not None
    assert late.failure.code == "DEADLINE_EXCEEDED"
    assert third.failure is not None
    assert third.failure.message == "2 calls are being answered already"
    assert rejected(metrics, "unknown", "late") == rejected(metrics, "unknown", "too_many_calls") == 1
    assert recorder.in_flight.count == 3, "until the front has sent the last byte of each"


def test_a_call_that_ends_without_its_message(recorder: CallRecorder, metrics: Metrics) -> None:
    with pytest.raises(asyncio.CancelledError), recorder.begin("Translate", None):
        raise asyncio.CancelledError
    assert rejected(metrics, "unknown", "no_message") == 1


def test_a_deadline_that_passes_in_the_engine_is_no_refusal(recorder: CallRecorder, metrics: Metrics) -> None:
    with begun(recorder) as record:
        raise DeadlineExceeded
    assert record.rejection is None
    assert counted(metrics, "dates", "DEADLINE_EXCEEDED") == 1


def test_a_model_that_is_not_served_is_no_label(recorder: CallRecorder, metrics: Metrics) -> None:
    with begun(recorder, model="x" * 1000) as record:
        record.begin_answer()
    assert counted(metrics, "unknown", "OK") == 1


def test_the_deadline_in_a_message_counts_as_the_calls_own(recorder: CallRecorder) -> None:
    load = recorder.loads["dates"]
    asked: list[float] = []
    load.delay = lambda remaining_s, *_: asked.append(remaining_s)  # type: ignore[method-assign]
    with begun(recorder, 10.0) as record:
        record.begin_answer(deadline_s=time.monotonic() + 1.0)
    with begun(recorder, 10.0) as record:
        record.begin_answer(deadline_s=time.monotonic() + 100.0)
    assert asked[0] <= 1.0
    assert 9.0 < asked[1] <= 10.0


async def test_the_calls_in_flight_are_waited_for(recorder: CallRecorder) -> None:
    recorder.begin("Translate", None)
    waiting = asyncio.create_task(recorder.in_flight.wait_until_none_runs())
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    recorder.in_flight.end()
    await asyncio.wait_for(waiting, 5)


@pytest.mark.parametrize("logs_content", [False, True])
@pytest.mark.parametrize(
    "error", [InvalidRequest([FieldViolation("inputs[0]", "'MARKER' is not a text")]), ValueError("MARKER")]
)
def test_what_a_caller_sent_is_in_the_log_only_if_asked_for(
    error: Exception, metrics: Metrics, log: io.StringIO, *, logs_content: bool
) -> None:
    recorder = CallRecorder(metrics, {"dates": 4}, max_calls=2, logs_content=logs_content)
    with recorder.begin("Translate", None, "id-4071"):
        raise error
    line = json.loads(log.getvalue())
    assert ("MARKER" in log.getvalue()) is logs_content
    assert line["request_id"] == "id-4071"


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [
        ("4071", True),
        ("6f1c9a52-0d9c-4a53-9a7b-3f0d2f1f6a11", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        ("two words", False),
        ("line\nbreak", False),
        ("x-\u2028", False),
        (None, False),
    ],
)
def test_a_call_keeps_a_sane_id_and_else_gets_one(
    sent: str | None, recorder: CallRecorder, *, is_kept: bool
) -> None:
    first, second = (recorder.begin("Translate", None, sent).request_id for _ in range(2))
    assert (first == sent) is is_kept
    assert (first == second) is is_kept
