"""CTranslate2 as a process: one JSON object a line on standard input, one answer a line on standard output.

Runs in the peers' environment, which has neither torch nor Dragoman. Requests, by their `request`:

    convert   weights (.npz of benchmarks/serving/ctranslate2_weights.py), shape, folder
    load      folder, compute_type, inter_threads, intra_threads
    decode    inputs, settings of translate_batch, turn_s: decode them again and again for at least so long

A token is its id in decimal, so that no text comes between the two systems. An answer with `error` says what failed.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.specs import common_spec, transformer_spec

UNKNOWN, BEGIN, END = "1", "2", "3"


class Worker:
    """Answers requests; holds one loaded model."""

    def __init__(self) -> None:
        self.translator: Any = None

    def convert(self, weights: str, shape: dict[str, Any], folder: str) -> dict[str, Any]:
        spec = transformer_spec.TransformerSpec.from_config(
            tuple(shape["num_layers"]),
            shape["num_heads"],
            pre_norm=shape["pre_norm"],
            activation=common_spec.Activation[shape["activation"]],
            ffn_glu=shape["gated"],
        )
        with np.load(weights) as arrays:
            for path, array in arrays.items():
                _assign(spec, path, array)
        tokens = [str(token_id) for token_id in range(shape["vocabulary_size"])]
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
        spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = UNKNOWN, BEGIN, END
        spec.config.decoder_start_token = BEGIN
        spec.validate()
        spec.optimize()  # one matrix for the embeddings and the projection, as in the model
        Path(folder).mkdir(parents=True)
        spec.save(folder)
        return {}

    def load(self, folder: str, compute_type: str, inter_threads: int, intra_threads: int) -> dict[str, Any]:
        self.translator = None  # two at a time would hold the weights twice
        self.translator = ctranslate2.Translator(
            folder,
            device="cpu",
            compute_type=compute_type,
            inter_threads=inter_threads,
            intra_threads=intra_threads,
        )
        return {"compute_type": self.translator.compute_type, "version": ctranslate2.__version__}

    def decode(
        self, inputs: list[list[int]], settings: dict[str, Any], turn_s: float, *, answers: bool = False
    ) -> dict[str, Any]:
        source = [[str(token_id) for token_id in ids] for ids in inputs]
        num_runs, start_s = 0, time.perf_counter()
        while True:
            results = self.translator.translate_batch(
                source, return_end_token=True, return_scores=answers, **settings
            )
            num_runs += 1
            elapsed_s = time.perf_counter() - start_s
            if elapsed_s >= turn_s:
                break
        answer: dict[str, Any] = {
            "seconds": elapsed_s / num_runs,
            "num_tokens": sum(len(result.hypotheses[0]) for result in results),
        }
        if answers:
            answer["token_ids"] = [list(map(int, result.hypotheses[0])) for result in results]
            answer["scores"] = [result.scores[0] for result in results]
        return answer


def _assign(spec: Any, path: str, array: np.ndarray) -> None:
    """`encoder.layer.0.ffn.linear_0.weight` of `spec` becomes `array`."""
    *parents, last = path.split(".")
    for name in parents:
        spec = spec[int(name)] if name.isdecimal() else getattr(spec, name)
    setattr(spec, last, array)


def main() -> None:
    worker = Worker()
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = getattr(worker, arguments.pop("request"))(**arguments)
        except Exception as error:  # noqa: BLE001  whatever it is, the benchmark says it and ends
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
