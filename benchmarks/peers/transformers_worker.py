"""GPT2LMHeadModel of Hugging Face transformers, PyTorch eager in fp32, answering requests in lines of JSON.

Runs in the peers' environment.

    load      weights (.npz by the names of GPT2LMHeadModel's state), config (of GPT2Config), threads
    decode    inputs of one length, num_tokens of each answer, turn_s: again and again for at least so long
"""

from typing import Any

import numpy as np
import torch
from json_worker import answer_requests, repeat
from transformers import GPT2Config, GPT2LMHeadModel


class Worker:
    """Answers requests; holds one loaded model."""

    def __init__(self) -> None:
        self.model: Any = None

    def load(self, weights: str, config: dict[str, Any], threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        self.model = GPT2LMHeadModel(GPT2Config(**config)).eval()
        with np.load(weights) as arrays:
            state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.model.load_state_dict(state)
        return {}

    def decode(
        self, inputs: list[list[int]], num_tokens: int, turn_s: float, *, answers: bool = False
    ) -> dict[str, Any]:
        token_ids = torch.tensor(inputs)
        seconds, result = repeat(lambda: self._generate(token_ids, num_tokens, answers=answers), turn_s)
        new = result.sequences[:, token_ids.shape[1] :]
        answer: dict[str, Any] = {"seconds": seconds, "num_tokens": new.numel()}
        if answers:
            logits = torch.stack(
                result.logits, dim=1
            )  # (B, T, vocabulary), before the end token was forbidden
            scores = logits.log_softmax(dim=-1).gather(-1, new[..., None])[..., 0]
            answer["token_ids"] = new.tolist()
            answer["log_probabilities"] = scores.sum(dim=1).tolist()
        return answer

    @torch.inference_mode()
    def _generate(self, token_ids: torch.Tensor, num_tokens: int, *, answers: bool) -> Any:
        return self.model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            return_dict_in_generate=True,
            output_logits=answers,
        )


if __name__ == "__main__":
    answer_requests(Worker())
