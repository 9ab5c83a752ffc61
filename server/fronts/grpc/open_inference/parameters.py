"""Parameters of a request to decoding options, which have the same names in dragoman.v1."""

import ctypes
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dragoman.inference.grpc_service_pb2 import InferParameter
from dragoman.server.errors import FieldViolation, shown
from dragoman.server.priority import Priority
from dragoman.server.requests.options import DEFAULT_OPTIONS, Options

__all__ = ["OPTION_READERS", "PRIORITY_LEVELS", "Parameters", "parameter_path", "read_parameters"]

MAX_LIST_CHARACTERS = 262_144
"""Longest string that holds a list: 64 texts of 256 characters, each written as two escapes, take 196,608."""

PRIORITY_LEVELS = {0: Priority.NORMAL, 1: Priority.HIGH, 2: Priority.NORMAL, 3: Priority.LOW}
"""As Triton counts them: 1 is the highest, 0 the default."""

_MAX_UINT32, _MAX_UINT64 = 2**32 - 1, 2**64 - 1
_MAX_NUMBER_CHARACTERS = 64
"""No float needs more. JSON takes a third of a second for megabytes, and makes integers that no float holds."""
_MICROSECONDS = 1e-6

Reader = Callable[[InferParameter], Any]
"""Takes a parameter and returns the option's value. Raises `_UnfitError` with what is wrong."""


class _UnfitError(Exception):
    """A parameter has another type than its option, or a value that the option cannot have."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a request, checked.

    Attributes:
        options: how to decode.
        given: the names of the options that were given.
        priority: how soon the call gets its turn.
        timeout_s: seconds that the answer may take, or None.
        ends_empty: whether the last response of a stream is to be one without outputs.
    """

    options: Options = DEFAULT_OPTIONS
    given: tuple[str, ...] = ()
    priority: Priority = Priority.NORMAL
    timeout_s: float | None = None
    ends_empty: bool = False


def parameter_path(name: str) -> str:
    """Returns the field of a refusal that means the parameter `name`."""
    return f"parameters[{shown(name)}]"


def read_parameters(
    given: Mapping[str, InferParameter], *, is_streamed: bool
) -> tuple[Parameters, list[FieldViolation]]:
    """Returns what `given` says, and what is wrong with it. A stream takes one parameter more."""
    if not given:
        return _NO_PARAMETERS, []
    readers = _STREAM_READERS if is_streamed else _READERS
    values: dict[str, Any] = {}
    violations = []
    # One more than there are: of these, one at least is unknown.
    for name, parameter in itertools.islice(sorted(given.items()), len(readers) + 1):
        reader = readers.get(name)
        if reader is None:
            violations.append(FieldViolation(parameter_path(name), _unknown(name)))
            continue
        try:
            values[name] = reader(parameter)
        except _UnfitError as error:
            violations.append(FieldViolation(parameter_path(name), str(error)))
    priority = values.pop(_PRIORITY, Priority.NORMAL)
    timeout_s = values.pop(_TIMEOUT, None)
    ends_empty = values.pop(_ENDS_EMPTY, False)
    options = Options(**values) if values else DEFAULT_OPTIONS
    return Parameters(options, tuple(values), priority, timeout_s, ends_empty), violations


def _unknown(name: str) -> str:
    if name == _ENDS_EMPTY:
        return "has a meaning in ModelStreamInfer only"
    if name in _SEQUENCE_PARAMETERS:
        return "models of this server keep nothing between requests"
    return f"is unknown; the parameters are {', '.join(_READERS)}"


def _count(parameter: InferParameter) -> int:
    return _whole(parameter, _MAX_UINT32)


def _seed(parameter: InferParameter) -> int:
    return _whole(parameter, _MAX_UINT64)


def _whole(parameter: InferParameter, most: int) -> int:
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in {"int64_param", "uint64_param"}:
        raise _UnfitError(f"{_described(parameter)} is not a whole number (int64_param or uint64_param)")
    value = int(getattr(parameter, kind))
    if not 0 <= value <= most:
        raise _UnfitError(f"{value} is not between 0 and {most}")
    return value


def _number(parameter: InferParameter) -> float:
    kind = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, kind) if kind else None
    if kind == "string_param":  # the protocol without Triton's extensions has no floating point
        if len(parameter.string_param) > _MAX_NUMBER_CHARACTERS:
            raise _UnfitError(f"{_described(parameter)} has more than {_MAX_NUMBER_CHARACTERS} characters")
        value = _parsed(parameter.string_param)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _UnfitError(
            f"{_described(parameter)} is not a number (double_param, int64_param or string_param)"
        )
    # dragoman.v1 has float32: the same number gives the same answer.
    return ctypes.c_float(value).value


def _flag(parameter: InferParameter) -> bool:
    if parameter.WhichOneof("parameter_choice") != "bool_param":
        raise _UnfitError(f"{_described(parameter)} is not true or false (bool_param)")
    return parameter.bool_param


def _texts(parameter: InferParameter) -> tuple[str, ...]:
    values = _list(parameter, 'strings, as ["END", "\\n"]')
    if not all(isinstance(value, str) for value in values):
        raise _UnfitError(f'{_described(parameter)} is not a JSON array of strings, as ["END", "\\n"]')
    for value in values:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _UnfitError(f"holds half of a surrogate pair: {error.reason}") from error
    return tuple(values)


def _token_ids(parameter: InferParameter) -> tuple[int, ...]:
    values = _list(parameter, "token ids, as [4, 17]")
    if not all(type(value) is int and 0 <= value <= _MAX_UINT32 for value in values):
        raise _UnfitError(f"{_described(parameter)} is not a JSON array of token ids, as [4, 17]")
    return tuple(values)


def _list(parameter: InferParameter, item_kind: str) -> list[Any]:
    if parameter.WhichOneof("parameter_choice") != "string_param":
        raise _UnfitError(
            f"{_described(parameter)} is not a string (string_param) with a JSON array of {item_kind}"
        )
    text = parameter.string_param
    if len(text) > MAX_LIST_CHARACTERS:
        raise _UnfitError(f"{len(text)} characters are more than {MAX_LIST_CHARACTERS}")
    values = _parsed(text)
    if not isinstance(values, list):
        raise _UnfitError(f"{shown(text)} is not a JSON array of {item_kind}")
    return values


def _parsed(text: str) -> Any:
    """Returns what `text` is in JSON; None where it is nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _timeout(parameter: InferParameter) -> float:
    microseconds = _whole(parameter, _MAX_UINT64)
    if not microseconds:
        raise _UnfitError("0 microseconds leave no time for an answer")
    return microseconds * _MICROSECONDS


def _priority(parameter: InferParameter) -> Priority:
    level = _whole(parameter, _MAX_UINT64)
    if level not in PRIORITY_LEVELS:
        raise _UnfitError(f"{level} is not 0 (the default), 1 (high), 2 (normal) or 3 (low)")
    return PRIORITY_LEVELS[level]


def _described(parameter: InferParameter) -> str:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        return "no value"
    value = getattr(parameter, kind)
    return f"{kind} {shown(value) if isinstance(value, str) else value}"


OPTION_READERS: Mapping[str, Reader] = {
    "max_tokens": _count,
    "min_tokens": _count,
    "temperature": _number,
    "top_k": _count,
    "top_p": _number,
    "seed": _seed,
    "stop": _texts,
    "beam_size": _count,
    "num_hypotheses": _count,
    "length_penalty": _number,
    "coverage_penalty": _number,
    "patience": _number,
    "repetition_penalty": _number,
    "no_repeat_ngram_size": _count,
    "suppressed_texts": _texts,
    "suppressed_token_ids": _token_ids,
    "num_alternatives": _count,
    "alignment": _flag,
}
"""The parameter of each option, by the name of the option."""

_PRIORITY = "priority"
_TIMEOUT = "timeout"
_ENDS_EMPTY = "triton_enable_empty_final_response"
_SEQUENCE_PARAMETERS = frozenset({"sequence_id", "sequence_start", "sequence_end"})
_READERS: Mapping[str, Reader] = {**OPTION_READERS, _PRIORITY: _priority, _TIMEOUT: _timeout}
_STREAM_READERS: Mapping[str, Reader] = {**_READERS, _ENDS_EMPTY: _flag}
_NO_PARAMETERS = Parameters()
