"""CTranslate2 as a model of Triton's Python backend, which puts requests that wait together (dynamic batching)."""

import json
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
        texts = [
            pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().item().decode()
            for request in requests
        ]
        answers = self._translator.translate(texts)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("ANSWER", np.array([[answer.encode()]], np.object_))])
            for answer in answers
        ]
