"""CTranslate2 with the same weights, in a process of its own."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from benchmarks.serving.ctranslate2_weights import ctranslate2_shape, ctranslate2_weights
from benchmarks.serving.peers import PEERS_FOLDER, PeerWorker
from benchmarks.serving.systems import Answers, Reading, Setting, Workload
from numpy.typing import NDArray

from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["CTranslate2", "convert", "convert_arrays"]

_SCRIPT: Final = PEERS_FOLDER / "ctranslate2_worker.py"
_COMPUTE_TYPES: Final = {"fp32": "float32", "int8": "int8"}
_OFFLINE_BATCHES: Final = (
    ("examples", 16),
    ("examples", 32),
    ("examples", 64),
    ("examples", 128),
    ("tokens", 512),
    ("tokens", 1024),
    ("tokens", 2048),
)


def convert(model: TranslationModel | LanguageModel, python: Path, folder: Path) -> None:
    """Write the model to `folder`, which is made, in CTranslate2's format.

    Raises:
        ValueError: CTranslate2 cannot express it.
        RuntimeError: the peer failed.
    """
    shape = ctranslate2_shape(model)
    assert isinstance(model, TranslationModel), "the shape has been taken"
    convert_arrays(ctranslate2_weights(model), shape, python, _SCRIPT, folder)


def convert_arrays(
    arrays: Mapping[str, NDArray[np.float32]], shape: dict[str, Any], python: Path, script: Path, folder: Path
) -> None:
    """Have the worker `script` build a specification of `shape`, fill it with `arrays` and write it to `folder`.

    Raises:
        RuntimeError: the peer failed.
    """
    with tempfile.TemporaryDirectory() as name:
        weights = Path(name) / "weights.npz"
        np.savez(weights, **arrays)  # type: ignore[arg-type]  # arrays, by their names
        worker = PeerWorker(python, script)
        try:
            worker.ask("convert", weights=str(weights), shape=shape, folder=str(folder))
        finally:
            worker.close()


class CTranslate2:
    """`Translator.translate_batch`, whose workers take batches of inputs of like lengths."""

    name = "CTranslate2"

    def __init__(
        self, python: Path, folder: Path, precision: Literal["fp32", "int8"], num_cores: int
    ) -> None:
        self.worker = PeerWorker(python, _SCRIPT)
        self._folder, self.precision, self._num_cores = folder, precision, num_cores
        self._loaded: dict[str, Any] = {}
        self._batch: Setting = {}

    def settings(self, workload: Workload) -> list[Setting]:
        batches = list(_OFFLINE_BATCHES)
        if workload.num_rows is not None:
            sizes = {workload.num_rows, len(workload.inputs), -(-workload.num_rows // 2)}
            batches = [("examples", size) for size in sorted(sizes, reverse=True)]
        return [
            {"inter_threads": inter, "intra_threads": intra, "batch_type": kind, "max_batch_size": size}
            for inter, intra in dict.fromkeys([(self._num_cores, 1), (1, self._num_cores)])
            for kind, size in batches
        ]

    def prepare(self, setting: Setting) -> None:
        threads = {name: setting[name] for name in ("inter_threads", "intra_threads")}
        self._batch = {name: setting[name] for name in ("batch_type", "max_batch_size")}
        if threads != self._loaded:
            self.worker.ask(
                "load", folder=str(self._folder), compute_type=_COMPUTE_TYPES[self.precision], **threads
            )
            self._loaded = threads

    def run(self, workload: Workload, turn_s: float) -> Reading:
        answer = self.worker.ask(
            "decode", inputs=workload.inputs, settings=self._options(workload), turn_s=turn_s
        )
        return Reading(answer["seconds"], answer["num_tokens"])

    def decode(self, workload: Workload) -> Answers:
        """Decode once, for the answers."""
        answer = self.worker.ask(
            "decode", inputs=workload.inputs, settings=self._options(workload), turn_s=0.0, answers=True
        )
        # A beam search's scores are means, by the length penalty of 1.
        lengths = [len(ids) if workload.beam_size > 1 else 1 for ids in answer["token_ids"]]
        scores = zip(answer["scores"], lengths, strict=True)
        return Answers(answer["token_ids"], [score * length for score, length in scores])

    def close(self) -> None:
        self.worker.close()

    def _options(self, workload: Workload) -> dict[str, Any]:
        return {
            **self._batch,
            "beam_size": workload.beam_size,
            "length_penalty": float(workload.beam_size > 1),
            "max_decoding_length": workload.max_tokens,
            "min_decoding_length": workload.min_tokens,  # its own default, 1, permits no empty answer
        }
