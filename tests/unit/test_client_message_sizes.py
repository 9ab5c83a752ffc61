"""RESOURCE_EXHAUSTED has many reasons; only with a delay is it an overload."""

import grpc
import pytest

from dragoman.client.batching import Batches, KnownSizes
from dragoman.client.errors import (
    FieldViolation,
    InvalidRequestError,
    MessageTooLargeError,
    OverloadedError,
    ServerError,
    error_from_call,
)
from dragoman.common.errors import UsageError


def exhausted(details: str, *trailers: tuple[str, str]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=details
    )


@pytest.mark.parametrize(
    ("details", "message"),
    [
        (
            "SERVER: Received message larger than max (5242890 vs. 4194304)",
            "the request has 5,242,890 bytes, but the server takes at most 4,194,304: ask for less in one call",
        ),
        (
            "CLIENT: Sent message larger than max (5242890 vs. 1048576)",
            "the request has 5,242,890 bytes, but this client sends at most 1,048,576: ask for less in one call",
        ),
        (
            "SERVER: Sent message larger than max (5242880 vs. 4194304)",
            "the answer has 5,242,880 bytes, but the server sends at most 4,194,304: ask for less in one call",
        ),
        (
            "CLIENT: Received message larger than max (80000000 vs. 67108864)",
            "the answer has 80,000,000 bytes, but this client takes at most 67,108,864: ask for less in one call",
        ),
    ],
)
def test_a_message_that_is_too_large_is_the_callers_mistake(details: str, message: str) -> None:
    error = error_from_call(exhausted(details), target="host:1")
    assert isinstance(error, MessageTooLargeError)
    assert isinstance(error, UsageError)
    assert str(error) == message


def test_an_overload_says_when_to_try_again() -> None:
    error = error_from_call(exhausted("full", ("grpc-retry-pushback-ms", "250")), target="host:1")
    assert isinstance(error, OverloadedError)
    assert error.retry_delay_s == 0.25


@pytest.mark.parametrize("trailers", [(), (("grpc-retry-pushback-ms", "-1"),)])
def test_what_never_gets_better_is_no_overload(trailers: tuple[tuple[str, str], ...]) -> None:
    error = error_from_call(exhausted("no quota left", *trailers), target="host:1")
    assert type(error) is ServerError
    assert str(error) == "host:1 failed with RESOURCE_EXHAUSTED: no quota left"


def test_texts_of_a_call_that_is_too_large_are_sent_in_smaller_ones() -> None:
    batches = Batches(
        lambda places: places, list("abcd"), timeout_s=1.0, known={}, key=("dates", "", 1, None)
    )
    too_large = error_from_call(exhausted("SERVER: Sent message larger than max (9 vs. 8)"), target="host:1")
    assert isinstance(too_large, InvalidRequestError)
    sizes = []
    with pytest.raises(MessageTooLargeError):
        for places in batches:
            sizes.append(places.stop - places.start)
            batches.refuse(too_large)
    assert sizes == [4, 2, 1]


def test_a_batch_after_the_first_is_too_large_in_the_same_words_and_of_the_same_kind() -> None:
    texts = ["a" * 2_000_000, "b" * 2_000_000]
    batches = Batches(lambda places: places, texts, timeout_s=1.0, known={}, key=("dates", "", 1, None))
    too_large = error_from_call(exhausted("SERVER: Sent message larger than max (9 vs. 8)"), target="host:1")
    assert isinstance(too_large, InvalidRequestError)
    requests = iter(batches)
    next(requests)
    batches.accept()
    next(requests)
    with pytest.raises(MessageTooLargeError, match="the answer has 9 bytes"):
        batches.refuse(too_large)


def test_a_limit_on_the_number_of_texts_is_remembered_and_one_on_bytes_is_not() -> None:
    for error, is_remembered in [
        (
            error_from_call(exhausted("SERVER: Sent message larger than max (9 vs. 8)"), target="host:1"),
            False,
        ),
        (_refusal("options"), False),
        (_refusal("inputs"), True),
    ]:
        assert isinstance(error, InvalidRequestError)
        known: KnownSizes = {}
        batches = Batches(
            lambda places: places, list("abcd"), timeout_s=1.0, known=known, key=("dates", "", 1, None)
        )
        requests = iter(batches)
        next(requests)
        batches.refuse(error)
        assert next(requests) == slice(0, 2)
        assert known == ({("dates", "", 1, None): 2} if is_remembered else {})


def _refusal(field: str) -> InvalidRequestError:
    violations = (FieldViolation(field, "too much"),)
    return InvalidRequestError(
        "too much", code=grpc.StatusCode.INVALID_ARGUMENT, target="host:1", violations=violations
    )
