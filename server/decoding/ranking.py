"""Alignments, and the order of hypotheses where attention has a say in it."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from dragoman.server.decoding.hypothesis import Hypothesis
from dragoman.server.decoding.parameters import DecodingParameters

__all__ = ["Attention", "coverage_penalty", "ranked"]

Attention = NDArray[
    np.float32
]  # (T + 1, S): of each output token, the end of sequence included, on the source


def ranked(
    hypotheses: Sequence[Hypothesis], attentions: Sequence[Attention], parameters: DecodingParameters
) -> tuple[Hypothesis, ...]:
    """Add what attention tells: alignments, if asked for, and the coverage penalty in scores and order.

    Finished hypotheses stay before those that the limit cut off.
    """
    rescored = []
    for hypothesis, attention in zip(hypotheses, attentions, strict=True):
        score = hypothesis.score
        if parameters.coverage_penalty:
            chosen = attention[: hypothesis.num_output_tokens]
            score += parameters.coverage_penalty * coverage_penalty(chosen)
        alignment = hypothesis.alignment
        if parameters.align:
            alignment = tuple(attention[: len(hypothesis.token_ids)].argmax(axis=1).tolist())
        rescored.append(msgspec.structs.replace(hypothesis, score=score, alignment=alignment))
    return tuple(sorted(rescored, key=lambda hypothesis: (hypothesis.is_cut_off, -hypothesis.score)))


def coverage_penalty(attention: Attention) -> float:
    """Sum over the source of log min(attention it got in all, 1) (Wu et al. 2016, equation 14); 0 at most."""
    covered = np.minimum(attention.sum(axis=0, dtype=np.float64), 1.0)
    return float(np.log(covered[covered > 0]).sum())
