"""Inputs before they have a row: token ids, what was made of them, and which of them share a run of a graph."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_RUN_TOKENS", "Encoded", "Source", "padded", "runs_of"]

MAX_RUN_TOKENS = 16_384
"""Padding included: what a run computes lies in memory of its own."""
_MAX_PADDING_TOKENS = 8
"""A run costs as much as some eight tokens before it computes the first: that much padding is cheaper than another."""


class Encoded(NamedTuple):
    """What was made of an input: keys and values of all inputs of a run by name, and its place among them."""

    computed: Mapping[str, Any]
    place: int


@dataclass(slots=True, eq=False)
class Source:
    """An input (token ids, special tokens included), and what was made of it if it was encoded before its start."""

    token_ids: Sequence[int]
    encoded: Encoded | None = None


def runs_of(
    sources: Sequence[Source], ahead: Sequence[Source], max_padding_share: float
) -> Iterator[list[Source]]:
    """The inputs of one run after the other, the longest first.

    All of `sources` are in one. Of `ahead` those that have not been encoded are, where they fit in.

    Args:
        sources: inputs that have to be encoded.
        ahead: inputs that may be encoded as well; looked at anew for each run.
        max_padding_share: of a run; or eight tokens an input, where that is more.
    """
    order = sorted(sources, key=lambda source: len(source.token_ids))
    while order:
        longest = len(order[-1].token_ids)
        shortest = min(longest * (1 - max_padding_share), longest - _MAX_PADDING_TOKENS)
        most = max(1, MAX_RUN_TOKENS // longest)
        batch = [source for source in order if len(source.token_ids) >= shortest][-most:]
        del order[-len(batch) :]
        fitting = [
            source
            for source in ahead
            if source.encoded is None and shortest <= len(source.token_ids) <= longest
        ]
        yield [*batch, *fitting[: most - len(batch)]]


def padded(sequences: Sequence[Sequence[int]], padding: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Ids (B, longest), padded to the right, and lengths (B)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    ids = np.full((len(sequences), int(lengths.max())), padding, np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    return ids, lengths
