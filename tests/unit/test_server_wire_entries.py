"""Entries that are counted on the wire, against protobuf's own parser."""

import contextlib
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from dragoman.inference import grpc_service_pb2
from dragoman.server.fronts.grpc.wire_entries import count_entries
from dragoman.v1 import generation_pb2, translation_pb2
from dragoman.v1.decoding_pb2 import DecodingOptions

ANY = 10**9
TEXTS = st.lists(st.text(max_size=200), max_size=8)
OPTIONS = st.builds(
    DecodingOptions,
    max_tokens=st.none() | st.integers(0, 2**32 - 1),
    temperature=st.none() | st.floats(width=32),
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop=TEXTS,
    suppressed_texts=TEXTS,
    suppressed_token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=300),
    alignment=st.booleans(),
)
PAIRS = st.builds(translation_pb2.ScoredPair, source=st.text(), target=st.text())
INT64 = st.integers(-(2**63), 2**63 - 1)
TENSOR = grpc_service_pb2.ModelInferRequest.InferInputTensor
CONTENTS = st.builds(
    grpc_service_pb2.InferTensorContents,
    int64_contents=st.lists(INT64),
    bool_contents=st.lists(st.booleans()),
    fp32_contents=st.lists(st.floats(width=32)),
    fp64_contents=st.lists(st.floats()),
    bytes_contents=st.lists(st.binary()),
)
REQUESTS = st.one_of(
    st.builds(
        translation_pb2.TranslateRequest,
        model=st.text(),
        inputs=TEXTS,
        options=st.none() | OPTIONS,
        target_prefixes=TEXTS,
    ),
    st.builds(
        translation_pb2.ScoreTranslationsRequest, pairs=st.lists(PAIRS), num_alternatives=st.integers(0, 9)
    ),
    st.builds(generation_pb2.GenerateRequest, prompt=st.text(), options=st.none() | OPTIONS),
    st.builds(generation_pb2.ScoreTextsRequest, model=st.text(), texts=TEXTS),
    st.builds(
        grpc_service_pb2.ModelInferRequest,
        id=st.text(),
        parameters=st.dictionaries(st.text(), st.builds(grpc_service_pb2.InferParameter, int64_param=INT64)),
        inputs=st.lists(st.builds(TENSOR, name=st.text(), shape=st.lists(INT64), contents=CONTENTS)),
        raw_input_contents=st.lists(st.binary()),
    ),
)


def num_entries(message: Message) -> int:
    num = 0
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            # Each entry has its key and its value, on the wire also where they are the defaults.
            num += sum(3 + num_entries(each) for each in value.values())
            continue
        values = value if field.is_repeated else [value]
        num += len(values)
        if field.message_type is not None:
            num += sum(map(num_entries, values))
    return num


def descriptor_of(message: Message) -> Any:
    return message.DESCRIPTOR


@given(REQUESTS)
def test_the_count_of_a_message_is_that_of_its_entries(request: Message) -> None:
    message = request.SerializeToString()
    assert count_entries(message, descriptor_of(request), ANY) == num_entries(request)


@given(REQUESTS, st.data())
def test_whatever_the_parser_accepts_has_no_more_entries_than_were_counted(
    request: Message, data: st.DataObject
) -> None:
    damaged = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged)))
        damaged[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=12))
    num_counted = count_entries(bytes(damaged), descriptor_of(request), ANY)
    with contextlib.suppress(DecodeError):
        parsed = type(request).FromString(bytes(damaged))
        assert num_entries(parsed) <= num_counted


@given(st.binary(max_size=64))
def test_any_bytes_are_counted(message: bytes) -> None:
    descriptor = translation_pb2.ScoreTranslationsRequest.DESCRIPTOR
    num_counted = count_entries(message, descriptor, ANY)
    assert 0 <= num_counted <= len(message)
    with contextlib.suppress(DecodeError):
        assert num_entries(translation_pb2.ScoreTranslationsRequest.FromString(message)) <= num_counted


def unpacked(token_id: int) -> bytes:
    return bytes([0x80, 0x01, token_id])  # field 16, a varint


def options_of(fields: bytes, num_repeats: int) -> bytes:
    """Field 4 of a request, whose length takes three bytes."""
    length = len(fields) * num_repeats
    return bytes([0x22, length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14]) + fields * num_repeats


@pytest.mark.parametrize(
    "message",
    [
        translation_pb2.TranslateRequest(inputs=[""] * 9000).SerializeToString(),
        translation_pb2.TranslateRequest(
            options=DecodingOptions(suppressed_token_ids=range(9000))
        ).SerializeToString(),
        translation_pb2.TranslateRequest(
            options=DecodingOptions(suppressed_token_ids=[2**32 - 1] * 1001)
        ).SerializeToString(),
        options_of(unpacked(7), 9000),
        options_of(b"\x82\x01\x00", 9000),  # packed fields without an element
        options_of(b"\x3a\x00", 9000),  # stop strings
        b"\x22\x00" * 9000,  # options without a field
        b"\x98\x06\x05" * 9000,  # a field that the type lacks
        b"\x9b\x06" * 9000,  # groups in groups
        b"\x1a\x00" * 9000 + b"\xff",  # ends within a tag
    ],
)
def test_too_many_entries_are_found_in_whatever_form_they_come(message: bytes) -> None:
    descriptor = translation_pb2.TranslateRequest.DESCRIPTOR
    assert count_entries(message, descriptor, 1000) > 1000


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x1a\x00\x1a\x80", id="a length without its end"),
        pytest.param(b"\x1a\x00\x1a\x09abc", id="a text longer than the message"),
        pytest.param(b"\x1a\x00\x22\x7f\x3a\x00", id="a nested message longer than the message"),
        pytest.param(b"\x1a\x00\x22\x01\x3a\x00", id="a nested message that ends within a field"),
        pytest.param(b"\x1a\x00\x0c", id="the end of a group that never began"),
        pytest.param(b"\x1a\x00\x0b", id="a group without an end"),
        pytest.param(b"\x1a\x00\x0f", id="a wire type that there is not"),
        pytest.param(b"\x1a\x00\x08" + b"\xff" * 11, id="a number of eleven bytes"),
        pytest.param(b"\x1a\x00\x0d\x00", id="four bytes of which one is there"),
    ],
)
def test_a_malformed_message_is_counted_up_to_its_fault(message: bytes) -> None:
    with pytest.raises(DecodeError):
        translation_pb2.TranslateRequest.FromString(message)
    assert 1 <= count_entries(message, translation_pb2.TranslateRequest.DESCRIPTOR, ANY) <= 3
