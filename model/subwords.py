"""BPE-dropout (Provilkov et al. 2020): the same word cut into other tokens each time it is read.

The `tokenizers` library has it too, but draws from a generator that cannot be seeded, and the same seed is to give
the same training.
"""

import itertools
import json
import random

from tokenizers import Tokenizer

__all__ = ["BpeDropout"]

_MAX_CUTS = 32  # cuts of a word that are drawn at most; a word met again takes one of them


class BpeDropout:
    """Encodes as `tokenizer` does, but leaves out each possible merge with some probability."""

    def __init__(self, tokenizer: Tokenizer, probability: float, seed: int) -> None:
        """`tokenizer` is a BPE over characters; the same seed and texts give the same tokens."""
        model = json.loads(tokenizer.to_str())["model"]
        self._tokenizer, self._probability = tokenizer, probability
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
        self._ids: dict[str, int] = model["vocab"]
        self._unknown_id = self._ids[model["unk_token"]]
        self._rng = random.Random(seed)  # noqa: S311  nothing secret
        self._cuts: dict[str, list[list[int]]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
        words = self._tokenizer.pre_tokenizer.pre_tokenize_str(text)
        return [token for word, _ in words for token in self._cut_again(word)]

    def _cut_again(self, word: str) -> list[int]:
        cuts = self._cuts.setdefault(word, [])
        index = self._rng.randrange(_MAX_CUTS)
        if index >= len(cuts) and len(cuts) < _MAX_CUTS:
            cuts.append(self._cut(word))
            return cuts[-1]
        return cuts[index]

    def _cut(self, word: str) -> list[int]:
        """Merge from characters on, the pair of lowest rank first, as long as one is not dropped."""
        parts = list(word)
        while len(parts) > 1:
            ranked = [
                (rank, place)
                for place, pair in enumerate(itertools.pairwise(parts))
                if (rank := self._ranks.get(pair)) is not None and self._rng.random() >= self._probability
            ]
            if not ranked:
                break
            _, place = min(ranked)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return [self._ids.get(part, self._unknown_id) for part in parts]
