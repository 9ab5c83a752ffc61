"""Inputs through `encode` or `prefill`: those of similar length share a run, before or when they get a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.manifest import Manifest
from dragoman.server.execution.cache_memory import CacheMemory

__all__ = ["MAX_RUN_TOKENS", "Encoded", "Encoder", "ModelInput", "padded"]

MAX_RUN_TOKENS = 16_384
"""Padding included: what a run computes lies in memory of its own."""
_MAX_PADDING_TOKENS = 8
"""A run costs as much as some eight tokens before it computes the first: that much padding is cheaper than another."""


class Encoded(NamedTuple):
    """The keys and values of an input.

    Attributes:
        outputs: of the run that encoded the input together with others, by name.
        position: of the input among those of the run.
    """

    outputs: Mapping[str, Any]
    position: int


@dataclass(slots=True, eq=False)
class ModelInput:
    """The input of a sequence: a source or a prompt.

    Attributes:
        token_ids: special tokens included.
        encoded: its keys and values, if it was encoded and has no row yet.
    """

    token_ids: Sequence[int]
    encoded: Encoded | None = None


class Encoder:
    """The graph that computes keys and values of whole inputs.

    Args:
        manifest: of the bundle.
        sessions: of its graphs.
        memory: in which outputs lie.
        max_padding_share: of the longest input in a run; a shorter one is encoded in another run.
    """

    def __init__(
        self,
        manifest: Manifest,
        sessions: Mapping[str, ort.InferenceSession],
        memory: CacheMemory,
        max_padding_share: float,
    ) -> None:
        self._manifest = manifest
        self._sessions = sessions
        self._memory = memory
        self._max_padding_share = max_padding_share

    def encode(self, inputs: Sequence[ModelInput], ahead: Sequence[ModelInput]) -> int:
        """Encode all of `inputs`, and those of `ahead` that fit into the same runs. Returns how many were encoded."""
        num_encoded = 0
        order = sorted(inputs, key=lambda each: len(each.token_ids))
        while order:
            longest = len(order[-1].token_ids)
            shortest = min(longest * (1 - self._max_padding_share), longest - _MAX_PADDING_TOKENS)
            most = max(1, MAX_RUN_TOKENS // longest)
            batch = [each for each in order if len(each.token_ids) >= shortest][-most:]
            del order[-len(batch) :]
            fitting = [
                each for each in ahead if each.encoded is None and shortest <= len(each.token_ids) <= longest
            ]
            batch += fitting[: most - len(batch)]
            outputs = self._run([each.token_ids for each in batch])
            for index, each in enumerate(batch):
                each.encoded = Encoded(outputs, index)
            num_encoded += len(batch)
        return num_encoded

    def _run(self, inputs: Sequence[Sequence[int]]) -> Mapping[str, Any]:
        """Keys and values of each input by name, (inputs, ...); none of prompts of one token."""
        padding = self._manifest.special_tokens.padding
        if self._manifest.facts.has_source:
            source_ids, lengths = padded(inputs, padding)
            return self._run_graph("encode", {"source_ids": source_ids, "source_lengths": lengths})
        # The last token of a prompt goes through the first decode step, so that all tokens are chosen there.
        token_ids, _ = padded([prompt[:-1] for prompt in inputs], padding)
        return self._run_graph("prefill", {"token_ids": token_ids}) if token_ids.size else {}

    def _run_graph(self, graph: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._memory.run(self._sessions[graph], self._manifest.graphs[graph], inputs)


def padded(sequences: Sequence[Sequence[int]], padding: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Ids (B, longest), padded to the right, and lengths (B)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    ids = np.full((len(sequences), int(lengths.max())), padding, np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    return ids, lengths
