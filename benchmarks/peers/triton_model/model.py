"""CTranslate2 as a model of Triton's Python backend, which puts requests that wait together (dynamic batching)."""

import json
from itertools import islice
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from ctranslate2_text import TextTranslator


class TritonPythonModel:
    """One instance a core, each with a translator of one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._translator = TextTranslator(**json.loads(parameters["settings"]["string_value"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        calls = [_texts(request) for request in requests]
        answers = iter(self._translator.translate([text for call in calls for text in call or ()]))
        return [_refusal() if call is None else _response(list(islice(answers, len(call)))) for call in calls]


def _texts(request: Any) -> list[str] | None:
    """The texts of a request; None: not all are UTF-8. Those beside it in the batch are not to fail with it."""
    try:
        return [text.decode() for text in pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().flat]
    except UnicodeDecodeError:
        return None


def _response(answers: list[str]) -> Any:
    values = np.array([[answer.encode()] for answer in answers], np.object_)
    return pb_utils.InferenceResponse([pb_utils.Tensor("ANSWER", values)])


def _refusal() -> Any:
    error = pb_utils.TritonError("TEXT is not UTF-8", pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse([], error)
