"""Each error that a caller can get has a reason for programs, and a row in docs/errors.md."""

import re
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from dragoman.client.errors import error_from_call
from dragoman.server.errors import (
    EngineError,
    EngineUnavailable,
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestError,
)
from dragoman.server.fronts.grpc.status import CallStatus, to_status
from dragoman.server.requests.failures import CODES, Failure, reason_of

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
ROW = re.compile(r"^\| ([A-Z_]+) \| `([A-Z_]+)` \| [^|]+ \| [^|]+ \|$", re.MULTILINE)


def info_of(status: CallStatus) -> error_details_pb2.ErrorInfo:
    [value] = [value for key, value in status.trailing_metadata if key == "grpc-status-details-bin"]
    assert isinstance(value, bytes)
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(value).details[-1].Unpack(info)
    return info


def test_the_page_has_a_row_for_each_error_and_no_other() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert sorted(rows) == sorted((code, reason_of(kind)) for kind, code in CODES.items())


def test_a_reason_names_one_error() -> None:
    reasons = [reason_of(kind) for kind in CODES]
    assert len(set(reasons)) == len(reasons)
    assert reason_of(ModelNotFound) == "MODEL_NOT_FOUND"
    assert reason_of(EngineError) == Failure.internal("x").reason == "INTERNAL"


@pytest.mark.parametrize(
    ("error", "refusal", "metadata"),
    [
        (InvalidRequest([FieldViolation("inputs[0]", "is empty")]), "invalid", {"refusal": "invalid"}),
        (
            Overloaded("2 calls are being answered already", 1.5),
            "too_many_calls",
            {"refusal": "too_many_calls"},
        ),
        (ModelNotFound("x" * 1000, []), None, {"model": "x" * 64}),
        (EngineUnavailable("gone"), None, {}),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_status_has_the_reason_beside_its_other_details(
    error: RequestError, refusal: str | None, metadata: dict[str, str]
) -> None:
    info = info_of(to_status(Failure.of(error, refusal)))
    assert (info.reason, info.domain) == (reason_of(type(error)), "dragoman")
    assert dict(info.metadata) == metadata


def test_an_internal_error_has_the_id_that_the_log_has() -> None:
    assert dict(info_of(to_status(Failure.internal("abc123"))).metadata) == {"request_id": "abc123"}


def test_the_client_reads_what_the_server_writes() -> None:
    status = to_status(Failure.of(Overloaded("8 inputs are waiting already", 1.5), "queue_full"))
    trailers = grpc.aio.Metadata(*status.trailing_metadata)
    told = error_from_call(
        grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailers, status.details), target="host:1"
    )
    assert (told.reason, told.metadata, told.retry_delay_s) == ("OVERLOADED", {"refusal": "queue_full"}, 1.5)


def test_a_reason_of_another_domain_is_none_of_ours() -> None:
    rich = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="no")
    rich.details.add().Pack(error_details_pb2.ErrorInfo(reason="PROXY", domain="example.com"))
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", rich.SerializeToString()))
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailers, "no")
    assert error_from_call(error, target="host:1").reason == ""
