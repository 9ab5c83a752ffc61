"""Counts the entries of a protobuf message on its bytes, before the message is parsed.

An empty entry takes two bytes on the wire, and two million of them 4 kB when the message is compressed. The parser
makes an object of each.

The format is https://protobuf.dev/programming-guides/encoding/. `count_entries` does not judge it: what no parser
accepts is left to the parser. It accepts at least what the parser accepts, so that nothing passes uncounted.
"""

import functools
import re
from collections.abc import Mapping
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

__all__ = ["count_entries"]

_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = range(6)
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10
_ANY_VARINT = re.compile(rb"[\x80-\xff]{0,9}[\x00-\x7f]")
_64_BITS = (1 << 64) - 1
_PACKED: Final = 0
_FIXED_SIZES = {
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
}
"""Bytes of an element of a packed field, where all have as many. Varints have not: they are `_PACKED`."""
_NOT_LAST = bytes(range(0x80, 0x100))
"""Bytes of a varint before its last one."""

_Fields = Mapping[int, Descriptor | int]


def count_entries(message: bytes, descriptor: Descriptor, most: int) -> int:
    """Returns how many entries `message` has, or a number above `most` as soon as there are more than `most`.

    Each field is an entry, and so is each element of a repeated field. A packed field without an element is one.
    A nested message counts with its own entries. Of a malformed message, the entries before the fault are counted.

    Args:
        message: the bytes as they came.
        descriptor: the type of the message.
        most: bounds the work as well: it grows with `most`, not with the message.
    """
    try:
        return _count(message, descriptor, most)
    except _MalformedError as error:
        return error.num_entries


class _MalformedError(Exception):
    def __init__(self, num_entries: int) -> None:
        self.num_entries = num_entries


def _count(message: bytes, descriptor: Descriptor, most: int) -> int:
    num_entries = num_groups = position = 0
    end, fields = len(message), _fields(descriptor)
    outer: list[tuple[int, _Fields]] = []
    while num_entries <= most:
        if position >= end:
            if position > end or num_groups or not outer:
                break
            end, fields = outer.pop()
            continue
        tag, position = _varint(message, position, num_entries)
        number, wire_type = tag >> 3, tag & 7
        num_entries += wire_type != _END_GROUP
        if wire_type == _LENGTH:
            length, position = _varint(message, position, num_entries)
            # The fields within a group are those of an unknown type.
            kind = None if num_groups else fields.get(number)
            if isinstance(kind, Descriptor) and position + length <= end:
                outer.append((end, fields))
                end, fields = position + length, _fields(kind)
                continue
            if isinstance(kind, int):
                num = length // kind if kind else _num_packed(message, position, length, most - num_entries)
                num_entries += max(1, num) - 1
            position += length
        elif wire_type in (_GROUP, _END_GROUP):
            num_groups += 1 if wire_type == _GROUP else -1
            if num_groups < 0:
                break
        else:
            position = _after_number(message, position, wire_type, num_entries)
    return num_entries


def _after_number(message: bytes, position: int, wire_type: int, num_entries: int) -> int:
    """Returns the position after the number of this wire type at `position`."""
    if wire_type in _FIXED_BYTES:
        return position + _FIXED_BYTES[wire_type]
    varint = _ANY_VARINT.match(message, position) if wire_type == _VARINT else None
    if varint is None:
        raise _MalformedError(num_entries)
    return varint.end()


def _varint(message: bytes, position: int, num_entries: int) -> tuple[int, int]:
    """Returns the number at `position` and the position after it."""
    if position < len(message) and message[position] < 0x80:  # most are one byte
        return message[position], position + 1
    value = 0
    for index, byte in enumerate(message[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & _64_BITS, position + index + 1
    raise _MalformedError(num_entries)


def _num_packed(message: bytes, position: int, length: int, most: int) -> int:
    """Returns the number of varints in a packed field, or more than `most` where they are too many to be counted."""
    if length > _MAX_VARINT_BYTES * (most + 1):
        return most + 2
    return len(message[position : position + length].translate(None, _NOT_LAST))


@functools.cache
def _fields(descriptor: Descriptor) -> _Fields:
    """Returns the fields that hold entries of their own, by number.

    Of each it has the nested type or, where the field may be packed, the size of an element; `_PACKED` for varints.
    """
    fields: dict[int, Descriptor | int] = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            fields[field.number] = field.message_type
        elif field.is_repeated and field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
            fields[field.number] = _FIXED_SIZES.get(field.type, _PACKED)
    return fields
