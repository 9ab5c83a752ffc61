import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

import dragoman.client.errors
from dragoman.client.errors import (
    CallError,
    FieldViolation,
    InvalidRequestError,
    OverloadedError,
    error_from_call,
)
from dragoman.common.errors import OperationError, UsageError


def aio_error(
    code: grpc.StatusCode, details: str = "it did not work", status: status_pb2.Status | None = None
) -> grpc.aio.AioRpcError:
    trailers = [("grpc-status-details-bin", status.SerializeToString())] if status else []
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=details)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_is_either_the_callers_mistake_or_a_failure(code: grpc.StatusCode) -> None:
    error = error_from_call(aio_error(code), target="host:1", timeout_s=3)
    assert error.code is code
    callers = {"INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION"}
    callers |= {"UNAUTHENTICATED", "PERMISSION_DENIED"}
    assert isinstance(error, UsageError) == (code.name in callers)
    assert isinstance(error, OperationError) == (code.name not in callers)
    assert "\n" not in str(error)


def test_failures_name_the_target() -> None:
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED):
        assert "host:1" in str(error_from_call(aio_error(code), target="host:1"))


@pytest.mark.parametrize("details", ["CANCELLED", "Stream removed", "Cancelling all calls"])
def test_a_call_that_the_server_ended_was_not_cancelled_by_its_caller(details: str) -> None:
    error = error_from_call(aio_error(grpc.StatusCode.CANCELLED, details), target="host:1")
    assert str(error).startswith("host:1 or a proxy before it ended the call")
    assert str(error).endswith(f"the call may be repeated: {details}")


def test_a_call_that_its_caller_cancelled_is_called_so() -> None:
    """The words are gRPC's own: a version that changes them fails here."""
    assert grpc.aio._call._LOCAL_CANCELLATION_DETAILS == dragoman.client.errors.CANCELLED_HERE  # type: ignore[attr-defined]  # not in the stubs
    error = error_from_call(
        aio_error(grpc.StatusCode.CANCELLED, dragoman.client.errors.CANCELLED_HERE), target="host:1"
    )
    assert str(error) == "the call to host:1 was cancelled"


def test_violations_that_the_message_leaves_out_are_added() -> None:
    bad_request = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field="inputs[2]", description="empty text"),
            error_details_pb2.BadRequest.FieldViolation(
                field="options.top_k", description="needs temperature"
            ),
        ]
    )
    status = status_pb2.Status(code=3, message="another wording, by a proxy")
    packed = any_pb2.Any()
    packed.Pack(bad_request)
    status.details.append(packed)
    error = error_from_call(
        aio_error(grpc.StatusCode.INVALID_ARGUMENT, "inputs[2]: empty text", status), target="host:1"
    )
    assert isinstance(error, InvalidRequestError)
    assert error.violations[1] == FieldViolation("options.top_k", "needs temperature")
    assert str(error) == "inputs[2]: empty text; options.top_k: needs temperature"


def test_the_retry_delay_is_decoded() -> None:
    retry_info = error_details_pb2.RetryInfo()
    retry_info.retry_delay.FromMilliseconds(1500)
    status = status_pb2.Status(code=8)
    packed = any_pb2.Any()
    packed.Pack(retry_info)
    status.details.append(packed)
    error = error_from_call(aio_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", status), target="host:1")
    assert isinstance(error, OverloadedError)
    assert error.retry_delay_s == 1.5


def test_an_empty_message_becomes_the_codes_name() -> None:
    assert str(error_from_call(aio_error(grpc.StatusCode.NOT_FOUND, ""), target="host:1")) == "NOT_FOUND"


def test_the_whole_tree_is_public() -> None:
    leaves = {cls.__name__ for cls in CallError.__subclasses__()}
    assert leaves | {"CallError"} <= set(dragoman.client.errors.__all__)
