"""Log-probabilities of given texts, by feeding them through the serving graphs step by step."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman.server.execution.backend import Backend
from dragoman.server.execution.encoding import ModelInput

__all__ = ["forced_steps", "score_offline"]

_MAX_ROWS = 32


def forced_steps(
    backend: Backend, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Decode `inputs` together while forcing `outputs`, longest first.

    Args:
        backend: the graphs.
        inputs: token ids as the tokenizer gives them, special tokens included.
        outputs: for each input the tokens to force, longest output first.

    Yields:
        For each step the number B of rows that still have a token to score, and the log-probabilities (B, V)
        it is scored by: a view that the next step overwrites.
    """
    lengths = [len(output) for output in outputs]
    assert lengths == sorted(lengths, reverse=True), "rows that end must be the last ones"
    rows = backend.rows(len(inputs))
    rows.start(range(len(inputs)), [ModelInput(input_ids) for input_ids in inputs])
    for step in range(max(lengths, default=0)):
        num_rows = sum(length > step for length in lengths)
        yield num_rows, rows.decode(num_rows).log_probabilities
        rows.slots.feed([output[step] for output in outputs[:num_rows]])


def score_offline(
    backend: Backend, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Log-probability of each token of `outputs`, given its input and the tokens before it (teacher forcing)."""
    scores: list[list[float]] = [[] for _ in outputs]
    order = sorted(range(len(outputs)), key=lambda index: -len(outputs[index]))
    for start in range(0, len(order), _MAX_ROWS):
        batch = order[start : start + _MAX_ROWS]
        forced = [outputs[index] for index in batch]
        for step, (num_rows, log_probabilities) in enumerate(
            forced_steps(backend, [inputs[i] for i in batch], forced)
        ):
            for row in range(num_rows):
                scores[batch[row]].append(float(log_probabilities[row, forced[row][step]]))
    return scores
