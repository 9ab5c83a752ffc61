"""Tensors on the wire: raw bytes, or lists of their type.

Raw bytes are little-endian and in row-major order. Each text (datatype BYTES) has its length before it, in four bytes.
"""

import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from dragoman.inference.grpc_service_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from dragoman.server.errors import FieldViolation

__all__ = ["Datatype", "Tensor", "add_output", "read_texts"]

Datatype: TypeAlias = Literal["BYTES", "INT32", "FP32"]

_LENGTH = struct.Struct("<I")
_TYPE_CODES: Mapping[Datatype, Literal["i", "f"]] = {"INT32": "i", "FP32": "f"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output: its values in row-major order."""

    name: str
    datatype: Datatype
    shape: Sequence[int]
    values: Sequence[str] | Sequence[int] | Sequence[float]


def add_output(response: ModelInferResponse, tensor: Tensor, *, is_raw: bool) -> None:
    """Write a tensor into `response`."""
    output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    if is_raw:
        response.raw_output_contents.append(_raw(tensor))
    elif tensor.datatype == "BYTES":
        output.contents.bytes_contents.extend(_encoded(tensor.values))
    elif tensor.datatype == "INT32":
        output.contents.int_contents.extend(tensor.values)  # type: ignore[arg-type]
    else:
        output.contents.fp32_contents.extend(tensor.values)  # type: ignore[arg-type]


def read_texts(
    tensor: ModelInferRequest.InferInputTensor, raw: bytes | None, num_texts: int, path: str
) -> tuple[list[str], list[FieldViolation]]:
    """Returns the `num_texts` texts of an input, from `raw` or from its contents, and what is wrong with them.

    `path` is the input's field in a refusal.
    """
    try:
        contents = _contents(tensor.contents) if raw is None else list(_split(raw, num_texts))
    except ValueError as error:
        return [], [FieldViolation(path, str(error))]
    if len(contents) != num_texts:
        description = f"has {len(contents)} texts, and its shape {list(tensor.shape)} means {num_texts}"
        return [], [FieldViolation(path, description)]
    texts, violations = [], []
    for index, content in enumerate(contents):
        try:
            texts.append(content.decode())
        except UnicodeDecodeError as error:
            description = f"is not UTF-8: {error.reason} at byte {error.start}"
            violations.append(FieldViolation(f"{path}[{index}]", description))
    return texts, violations


def _contents(contents: InferTensorContents) -> Sequence[bytes]:
    if others := [field.name for field, _ in contents.ListFields() if field.name != "bytes_contents"]:
        raise ValueError(f"has {others[0]}: texts are bytes_contents or raw_input_contents")
    return contents.bytes_contents


def _split(raw: bytes, num_texts: int) -> Iterator[bytes]:
    position = num_seen = 0
    while position < len(raw):
        if num_seen == num_texts:
            raise ValueError(f"has more raw contents than the {num_texts} texts that its shape means")
        num_seen += 1
        begin = position + _LENGTH.size
        if begin > len(raw):
            raise ValueError(f"ends within the length of a text, at byte {position} of its raw contents")
        position = begin + _LENGTH.unpack_from(raw, begin - _LENGTH.size)[0]
        if position > len(raw):
            raise ValueError(
                f"ends within a text: its raw contents have {len(raw)} bytes and the text ends at byte {position}"
            )
        yield raw[begin:position]


def _raw(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(text)) + text for text in _encoded(tensor.values))
    # An array takes a float64 that no float32 holds as infinity; struct refuses it.
    values: array[Any] = array(_TYPE_CODES[tensor.datatype], tensor.values)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _encoded(texts: Sequence[str] | Sequence[int] | Sequence[float]) -> Iterator[bytes]:
    return (str(text).encode() for text in texts)
