"""The exception tree, the one table from it to codes, and gRPC's statuses of them."""

import ast
from pathlib import Path
from typing import get_args

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import dragoman.server.errors
from dragoman.server.errors import (
    MAX_LISTED,
    Draining,
    EngineError,
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestError,
)
from dragoman.server.fronts.grpc.status import to_status
from dragoman.server.requests.failures import CODES, Code, Failure, rejection_reason

METADATA_LIMIT_BYTES = 8 * 1024


def details(status: grpc.Status) -> status_pb2.Status:
    key, value = (status.trailing_metadata or ())[0]
    assert key == "grpc-status-details-bin"
    assert isinstance(value, bytes)
    return status_pb2.Status.FromString(value)


def test_every_code_is_one_of_grpc() -> None:
    assert {grpc.StatusCode[code] for code in get_args(Code)} >= {
        grpc.StatusCode[code] for code in CODES.values()
    }


def test_every_request_error_has_a_code() -> None:
    kinds = set(RequestError.__subclasses__())
    assert set(CODES) == kinds.union(*(kind.__subclasses__() for kind in kinds))


def test_the_module_draws_and_exports_every_error() -> None:
    tree = ast.parse(Path(dragoman.server.errors.__file__).read_text(encoding="utf-8"))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert classes == {
        name
        for name in dragoman.server.errors.__all__
        if isinstance(getattr(dragoman.server.errors, name), type)
    }
    for name in classes - {"FieldViolation"}:
        assert name in (dragoman.server.errors.__doc__ or "")


def test_invalid_request_carries_all_field_violations() -> None:
    error = InvalidRequest([FieldViolation("inputs[1]", "is empty"), FieldViolation("options.seed", "no")])
    status = to_status(Failure.of(error))
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert status.details == "inputs[1]: is empty; options.seed: no"
    bad_request = error_details_pb2.BadRequest()
    assert details(status).details[0].Unpack(bad_request)
    assert [(each.field, each.description) for each in bad_request.field_violations] == [
        ("inputs[1]", "is empty"),
        ("options.seed", "no"),
    ]


def test_overload_carries_when_to_retry() -> None:
    status = to_status(Failure.of(Overloaded("8 inputs are waiting already", 1.5)))
    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry_info = error_details_pb2.RetryInfo()
    assert details(status).details[0].Unpack(retry_info)
    assert retry_info.retry_delay.ToMilliseconds() == 1500
    assert ("grpc-retry-pushback-ms", "1500") in (status.trailing_metadata or ())


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest([FieldViolation(f"inputs[{i}]", "is empty") for i in range(5000)]),
        ModelNotFound("x" * 1_000_000, [f"model-{i}/1" for i in range(5000)]),
    ],
)
def test_a_status_fits_into_trailing_metadata(error: RequestError) -> None:
    status = to_status(Failure.of(error))
    [(_, value)] = status.trailing_metadata or ()
    # The message is sent twice: as grpc-message and within the details.
    assert len(value) * 4 / 3 + len(status.details) < METADATA_LIMIT_BYTES
    assert f"and {5000 - MAX_LISTED} more" in status.details


def test_an_unknown_model_is_named_and_what_there_is_listed() -> None:
    assert str(ModelNotFound("datse", ["dates/2", "spell/1"])) == (
        "no model 'datse'; this server has: dates/2, spell/1"
    )


def test_internals_never_reach_the_caller() -> None:
    status = to_status(Failure.internal("abc123"))
    assert status.code is grpc.StatusCode.INTERNAL
    assert status.details == "internal error; the server's log has it under request id abc123"
    with pytest.raises(AssertionError):
        Failure.of(EngineError("at 0x7f: secret"))


def test_reasons_for_refusals() -> None:
    assert rejection_reason(Overloaded("full", 1)) == "queue_full"
    assert rejection_reason(Draining()) == "draining"
    assert rejection_reason(InvalidRequest([])) == rejection_reason(ModelNotFound("x", [])) == "invalid"
    assert rejection_reason(EngineError("broken")) is None
