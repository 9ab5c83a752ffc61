"""CTranslate2's Translator as a process that answers requests in lines of JSON.

Runs in the peers' environment, which has no Dragoman. Requests, by their `request`:

    convert   weights (.npz of benchmarks/serving/ctranslate2_weights.py), shape, folder
    load      folder, compute_type, inter_threads, intra_threads
    decode    inputs, settings of translate_batch, turn_s: decode them again and again for at least so long

A token is its id in decimal, so that no text comes between the two systems.
"""

from typing import Any

import ctranslate2
from ctranslate2.specs import common_spec, transformer_spec
from ctranslate2_spec import BEGIN, assign_weights, save, token_names
from json_worker import answer_requests, repeat


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
        assign_weights(spec, weights)
        tokens = token_names(shape["vocabulary_size"])
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
        spec.config.decoder_start_token = BEGIN
        save(spec, folder)
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
        seconds, results = repeat(
            lambda: self.translator.translate_batch(
                source, return_end_token=True, return_scores=answers, **settings
            ),
            turn_s,
        )
        answer: dict[str, Any] = {
            "seconds": seconds,
            "num_tokens": sum(len(result.hypotheses[0]) for result in results),
        }
        if answers:
            answer["token_ids"] = [list(map(int, result.hypotheses[0])) for result in results]
            answer["scores"] = [result.scores[0] for result in results]
        return answer


if __name__ == "__main__":
    answer_requests(Worker())
