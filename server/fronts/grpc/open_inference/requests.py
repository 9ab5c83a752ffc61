"""Messages to calls: which inputs there are, which outputs are wanted, and in which form.

| input | in a translation model | in a generation model |
|---|---|---|
| `text` | what is translated | what is continued |
| `target_prefix` | what the translation begins with | |
| `scored_text` | how probable is it as a translation of `text`? | how probable is it? `text` is left out |
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dragoman.inference.grpc_service_pb2 import ModelInferRequest
from dragoman.server.bundle.tasks import FACTS, Task
from dragoman.server.errors import FieldViolation, InvalidRequest, shown
from dragoman.server.fronts.grpc.open_inference.outputs import Wanted, wanted_outputs
from dragoman.server.fronts.grpc.open_inference.parameters import (
    Parameters,
    parameter_path,
    read_parameters,
)
from dragoman.server.fronts.grpc.open_inference.tensors import read_texts
from dragoman.server.requests.calls import Call, ScoringCall
from dragoman.server.requests.options import Options

__all__ = ["INPUTS", "MAX_ID_CHARACTERS", "Inference", "field_name", "read_request"]

MAX_ID_CHARACTERS = 256

INPUTS: Mapping[Task, Sequence[str]] = {
    "translation": ("text", "target_prefix", "scored_text"),
    "generation": ("text", "scored_text"),
}
"""The first one alone is not optional, unless a generation model scores."""

_FIELD = re.compile(r"(\w+)(?:\.(\w+))?(.*)")
_FIELD_NAMES = {
    "model": "model_name",
    "version": "model_version",
    "inputs": "inputs['text']",
    "sources": "inputs['text']",
    "prefixes": "inputs['target_prefix']",
    "texts": "inputs['scored_text']",
    "num_alternatives": "parameters['num_alternatives']",
    "options": "parameters",
}


@dataclass(frozen=True, slots=True)
class Inference:
    """A request as it is answered.

    Attributes:
        call: what the server's core is asked.
        wanted: outputs of the response.
        is_flat: whether the texts came in the shape [batch], not [batch, 1].
        is_raw: whether texts came as raw bytes. The outputs have the same form.
        ends_empty: whether the last response of a stream is to be one without outputs.
    """

    call: Call | ScoringCall
    wanted: Wanted
    is_flat: bool
    is_raw: bool
    ends_empty: bool

    @property
    def num_hypotheses(self) -> int:
        """The number of hypotheses that each input gets."""
        return 1 if isinstance(self.call, ScoringCall) else self.call.options.num_hypotheses or 1

    def shape(self, num_inputs: int) -> tuple[int, ...]:
        """Returns the shape of an output that has one value for each hypothesis."""
        if self.is_flat and self.num_hypotheses == 1:
            return (num_inputs,)
        return (num_inputs, self.num_hypotheses)


def field_name(field: str) -> str:
    """Returns what the protocol calls a field of `Call` or `ScoringCall`."""
    match = _FIELD.fullmatch(field)
    if match is None:
        return field
    name, option, rest = match[1], match[2], match[3]
    if name == "options" and option:
        return parameter_path(option) + rest
    return _FIELD_NAMES.get(name, name) + rest


def _input_path(name: str) -> str:
    """Returns the field of a refusal that means the input `name`."""
    return f"inputs[{shown(name)}]"


def read_request(
    request: ModelInferRequest,
    version: str,
    task: Task,
    *,
    max_inputs: int,
    remaining_s: float | None,
    is_streamed: bool = False,
) -> Inference:
    """Returns what `request` asks of a version of a model that does `task`.

    `remaining_s` is the time until the call's deadline.

    Raises:
        InvalidRequest: naming all inputs, outputs and parameters that are unknown or malformed.
    """
    parameters, violations = read_parameters(request.parameters, is_streamed=is_streamed)
    if len(request.id) > MAX_ID_CHARACTERS:
        violations.append(
            FieldViolation("id", f"{len(request.id)} characters are more than {MAX_ID_CHARACTERS}")
        )
    texts, of_inputs = _read_inputs(request, task, max_inputs)
    violations += of_inputs
    scores = any(tensor.name == "scored_text" for tensor in request.inputs)
    wanted, of_outputs = wanted_outputs(request.outputs, parameters.options, scores=scores)
    violations += of_outputs
    if scores:
        violations += _meaningless_in_scoring(parameters)
    if violations:
        raise InvalidRequest(violations)
    times_s = [each for each in (remaining_s, parameters.timeout_s) if each is not None]
    deadline_s = time.monotonic() + min(times_s) if times_s else None
    options = wanted.options(parameters.options)
    return Inference(
        _call(
            texts,
            options,
            model=request.model_name,
            version=version,
            task=task,
            priority=parameters.priority,
            deadline_s=deadline_s,
        ),
        wanted,
        is_flat=len(request.inputs[0].shape) == 1,
        is_raw=bool(request.raw_input_contents),
        ends_empty=parameters.ends_empty,
    )


def _call(texts: Mapping[str, Sequence[str]], options: Options, **of_any_call: Any) -> Call | ScoringCall:
    if "scored_text" in texts:
        num_alternatives = options.num_alternatives or 0
        sources = texts.get("text", ())
        return ScoringCall(
            sources=sources, texts=texts["scored_text"], num_alternatives=num_alternatives, **of_any_call
        )
    prefixes = texts.get("target_prefix", ())
    return Call(inputs=texts["text"], prefixes=prefixes, options=options, **of_any_call)


def _read_inputs(
    request: ModelInferRequest, task: Task, max_inputs: int
) -> tuple[dict[str, list[str]], list[FieldViolation]]:
    """Returns the texts of each input, and what is wrong with the inputs."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        description = f"{len(raw)} contents do not belong to {len(request.inputs)} inputs"
        return {}, [FieldViolation("raw_input_contents", description)]
    texts: dict[str, list[str]] = {}
    violations = []
    # One more than there are: of these, one at least is unknown or comes a second time.
    for index, tensor in enumerate(request.inputs[: len(INPUTS[task]) + 1]):
        path = _input_path(tensor.name)
        description = _fault(tensor, task, texts, max_inputs)
        if not description and raw and tensor.HasField("contents"):
            description = "has contents beside raw_input_contents"
        if description:
            violations.append(FieldViolation(path, description))
            continue
        num_texts = tensor.shape[0]
        texts[tensor.name], of_texts = read_texts(tensor, raw[index] if raw else None, num_texts, path)
        violations += of_texts
    return texts, violations or _lacking(texts, task)


def _fault(
    tensor: ModelInferRequest.InferInputTensor, task: Task, seen: Mapping[str, object], max_inputs: int
) -> str:
    """Returns what is wrong with an input beside its texts, or ""."""
    if tensor.name not in INPUTS[task]:
        return f"is unknown; a {task} model has the inputs {', '.join(INPUTS[task])}"
    if tensor.name in seen:
        return "comes a second time"
    if tensor.parameters:
        return f"has the parameter {shown(min(tensor.parameters))}; no input has any"
    if tensor.datatype != "BYTES":
        return f"has the datatype {shown(tensor.datatype)}: texts are BYTES"
    return _fault_of_shape(list(tensor.shape), max_inputs)


def _fault_of_shape(shape: Sequence[int], max_inputs: int) -> str:
    if len(shape) not in {1, 2} or shape[1:] not in ([], [1]) or shape[0] < 1:
        return f"has the shape {shape[:8]}: texts are [batch] or [batch, 1]"
    if shape[0] > max_inputs:
        return f"{shape[0]} are more than {max_inputs}, the server's limit"
    return ""


def _lacking(texts: Mapping[str, Sequence[str]], task: Task) -> list[FieldViolation]:
    """Returns what inputs there should be, and which should not be there together."""
    needs_text = FACTS[task].has_source or "scored_text" not in texts
    if needs_text and "text" not in texts:
        return [FieldViolation(_input_path("text"), "is missing")]
    if not needs_text and "text" in texts:
        description = "has no meaning beside scored_text: a generation model scores a text by itself"
        return [FieldViolation(_input_path("text"), description)]
    if "scored_text" in texts and "target_prefix" in texts:
        return [FieldViolation(_input_path("target_prefix"), "has no meaning beside scored_text")]
    violations = []
    num_texts = len(texts["text"]) if "text" in texts else len(texts["scored_text"])
    for name, values in texts.items():
        if len(values) != num_texts:
            description = f"{len(values)} texts do not belong to the {num_texts} of text"
            violations.append(FieldViolation(_input_path(name), description))
    return violations


def _meaningless_in_scoring(parameters: Parameters) -> list[FieldViolation]:
    """Returns the options that decide on how tokens are chosen: a scored text has all of its own."""
    return [
        FieldViolation(parameter_path(name), "has no meaning beside scored_text: nothing is chosen")
        for name in parameters.given
        if name != "num_alternatives"
    ]
