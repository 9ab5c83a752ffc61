"""CTranslate2's Generator as a process that answers requests in lines of JSON. Runs in the peers' environment.

convert   weights (.npz of benchmarks/serving/ctranslate2_weights.py), shape, folder
load      folder, precision, inter_threads, intra_threads, max_batch_size
decode    inputs, num_tokens of each answer, turn_s: decode them again and again for at least so long
"""

from typing import Any

import ctranslate2
from ctranslate2.specs import common_spec, transformer_spec
from ctranslate2_spec import assign_weights, save, token_names
from json_worker import answer_requests, repeat

COMPUTE_TYPES = {"fp32": "float32", "int8": "int8"}


class Worker:
    """Answers requests; holds one loaded model."""

    def __init__(self) -> None:
        self.generator: Any = None
        self.max_batch_size = 0

    def convert(self, weights: str, shape: dict[str, Any], folder: str) -> dict[str, Any]:
        spec = transformer_spec.TransformerDecoderModelSpec.from_config(
            shape["num_layers"],
            shape["num_heads"],
            pre_norm=shape["pre_norm"],
            activation=common_spec.Activation[shape["activation"]],
            ffn_glu=shape["gated"],
        )
        assign_weights(spec, weights)
        spec.register_vocabulary(token_names(shape["vocabulary_size"]))
        save(spec, folder)
        return {}

    def load(
        self, folder: str, precision: str, inter_threads: int, intra_threads: int, max_batch_size: int
    ) -> dict[str, Any]:
        self.generator = None  # two at a time would hold the weights twice
        self.generator = ctranslate2.Generator(
            folder,
            device="cpu",
            compute_type=COMPUTE_TYPES[precision],
            inter_threads=inter_threads,
            intra_threads=intra_threads,
        )
        self.max_batch_size = max_batch_size
        return {"compute_type": self.generator.compute_type}

    def decode(
        self, inputs: list[list[int]], num_tokens: int, turn_s: float, *, answers: bool = False
    ) -> dict[str, Any]:
        prompts = [[str(token_id) for token_id in ids] for ids in inputs]
        seconds, results = repeat(
            lambda: self.generator.generate_batch(
                prompts,
                max_batch_size=self.max_batch_size,
                include_prompt_in_result=False,  # otherwise it reads a prompt token by token
                max_length=num_tokens,
                min_length=num_tokens,
            ),
            turn_s,
        )
        answer: dict[str, Any] = {
            "seconds": seconds,
            "num_tokens": sum(len(result.sequences_ids[0]) for result in results),
        }
        if answers:
            answer["token_ids"] = [result.sequences_ids[0] for result in results]
            answer["log_probabilities"] = self._score(prompts, [result.sequences[0] for result in results])
        return answer

    def _score(self, prompts: list[list[str]], sequences: list[list[str]]) -> list[float]:
        """By the model's own distribution: while decoding, the softmax is taken anew without the forbidden end."""
        texts = [[*prompt, *sequence] for prompt, sequence in zip(prompts, sequences, strict=True)]
        scores = self.generator.score_batch(texts)
        # The first token of a text is given, and has no score.
        return [
            sum(score.log_probs[len(prompt) - 1 :]) for prompt, score in zip(prompts, scores, strict=True)
        ]


if __name__ == "__main__":
    answer_requests(Worker())
