"""Whether a finished training can have learned anything, by what needs no learning: guessing, and counting tokens."""

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dragoman.model.batching import Batch, Examples
from dragoman.model.tokenizer import PADDING_ID

__all__ = ["doubts", "unigram_loss"]

_NUM_COUNTED_TOKENS: Final = 200_000  # of the training data: enough for frequencies, and read in a moment
_MIN_STEPS: Final = 100

_ADVICE: Final = (
    "give it more training.max_minutes or training.max_steps, a smaller model, "
    "or smaller batches (training.batch_tokens)"
)


def doubts(
    *, num_steps: int, loss: float, unigram: float, vocabulary_size: int, is_from_scratch: bool
) -> str:
    """Return the reasons to doubt a training, as a sentence; empty if there are none.

    Args:
        num_steps: optimizer steps of the training.
        loss: of the final weights on validation, nats a token.
        unigram: the loss of a model that knows the tokens' frequencies alone.
        vocabulary_size: number of tokens of the vocabulary.
        is_from_scratch: whether it began with random weights; others may need few steps.
    """
    reasons = []
    guessing = math.log(vocabulary_size)
    if loss >= guessing:
        reasons.append(
            f"the model has learned nothing: its validation loss, {loss:.2f} nats a token, is not below "
            f"{guessing:.2f}, that of guessing among {vocabulary_size:,} tokens"
        )
    elif loss >= unigram:
        reasons.append(
            f"the model has hardly learned anything: its validation loss, {loss:.2f} nats a token, is not below "
            f"{unigram:.2f}, that of the tokens' frequencies alone"
        )
    if num_steps < _MIN_STEPS and is_from_scratch:
        reasons.append(f"{num_steps:,} {'steps are' if num_steps > 1 else 'step is'} too few to learn much")
    return "; ".join([*reasons, _ADVICE]) if reasons else ""


def unigram_loss(
    train: Examples, validation: Iterable[Batch], vocabulary_size: int, *, batch_tokens: int, seed: int
) -> float:
    """Nats a token on `validation` of a model that knows the frequencies of tokens in `train`, and nothing else.

    Each token is counted once more than it is met (Laplace), so that none is impossible.
    """
    counts = torch.zeros(vocabulary_size, dtype=torch.int64)
    for rows in train.plan(batch_tokens, np.random.default_rng(seed)):
        counts += _count(train.batch(rows), vocabulary_size)
        if int(counts.sum()) >= _NUM_COUNTED_TOKENS:
            break
    log_probabilities = (counts + 1.0).log() - math.log(float(counts.sum()) + vocabulary_size)
    found = sum((_count(batch, vocabulary_size) for batch in validation), torch.zeros_like(counts))
    return -float((found * log_probabilities).sum() / found.sum())


def _count(batch: Batch, vocabulary_size: int) -> Tensor:
    """How often each token is a label, (vocabulary)."""
    labels = batch.label_ids[batch.label_ids != PADDING_ID]
    return torch.bincount(labels, minlength=vocabulary_size)
