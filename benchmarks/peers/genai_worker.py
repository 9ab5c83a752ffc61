"""onnxruntime-genai's Generator as a process that answers requests in lines of JSON. Runs in the peers' environment.

load      folder (of benchmarks/serving/genai_model.py), threads
decode    inputs of one length, num_tokens of each answer, turn_s: again and again for at least so long
"""

import json
import os
from typing import Any

import numpy as np
from json_worker import answer_requests, repeat

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it reports to its makers otherwise, and reads this once
import onnxruntime_genai as genai

MAX_BATCH = 32  # its own limit


class Worker:
    """Answers requests; holds one loaded model."""

    def __init__(self) -> None:
        self.model: Any = None

    def load(self, folder: str, threads: int) -> dict[str, Any]:
        self.model = None  # two at a time would hold the weights twice
        config = genai.Config(folder)
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = genai.Model(config)
        return {"version": genai.__version__}

    def decode(
        self, inputs: list[list[int]], num_tokens: int, turn_s: float, *, answers: bool = False
    ) -> dict[str, Any]:
        token_ids = np.array(inputs, np.int32)
        batches = np.array_split(token_ids, -(-len(inputs) // MAX_BATCH))
        seconds, found = repeat(
            lambda: [self._generate(batch, num_tokens, scored=answers) for batch in batches], turn_s
        )
        sequences = np.concatenate([sequence for sequence, _ in found])
        answer: dict[str, Any] = {"seconds": seconds, "num_tokens": sequences.size}
        if answers:
            answer["token_ids"] = sequences.tolist()
            answer["log_probabilities"] = np.concatenate([scores for _, scores in found]).tolist()
        return answer

    def _generate(
        self, token_ids: np.ndarray[Any, Any], num_tokens: int, *, scored: bool
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """New tokens (B, T), and the log-probability of each row's (B), which is 0 where it is not asked for."""
        num_rows, num_given = token_ids.shape
        length = num_given + num_tokens
        params = genai.GeneratorParams(self.model)
        params.set_search_options(batch_size=num_rows, min_length=length, max_length=length)
        generator = genai.Generator(self.model, params)
        generator.append_tokens(token_ids)
        scores = np.zeros(num_rows)
        while not generator.is_done():
            # Before the next token: choosing it forbids the end in these very logits.
            logits = np.array(generator.get_logits()).reshape(num_rows, -1) if scored else None
            generator.generate_next_token()
            if logits is not None:
                scores += log_softmax(logits)[np.arange(num_rows), generator.get_next_tokens()]
        return np.stack([generator.get_sequence(row)[num_given:] for row in range(num_rows)]), scores


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each row of logits (B, V)."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


if __name__ == "__main__":
    answer_requests(Worker())
