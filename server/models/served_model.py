"""A loaded bundle and all that answering with it takes."""

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer

from dragoman.server.bundle.manifest import Manifest
from dragoman.server.decoding.suppression import Vocabulary
from dragoman.server.engine.engine import Engine
from dragoman.server.operations.metrics import ModelMetrics

__all__ = ["ServedModel", "longest_token", "max_characters_per_token"]

_MAX_SHRINKING = 4
"""How many characters a tokenizer's normaliser may make one of: a letter may have three accents beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A loaded bundle and all that answering with it takes.

    Attributes:
        max_characters_per_token: longest stretch of a text that one token may stand for.
        vocabulary: what each token adds to a text; laid out when it is first asked for.
    """

    name: str
    version: str
    provider: str
    manifest: Manifest
    tokenizer: Tokenizer
    max_characters_per_token: int
    vocabulary: Callable[[], Vocabulary]
    engine: Engine
    metrics: ModelMetrics

    @property
    def max_input_tokens(self) -> int:
        """Longest input accepted, special tokens included; a prompt leaves room for one token of answer."""
        limits = self.manifest.limits
        if self.manifest.task == "translation":
            return limits.max_source_tokens
        return min(limits.max_source_tokens, limits.max_context_tokens - 1)


def longest_token(tokenizer: Tokenizer) -> int:
    """Characters of the vocabulary's longest token, special ones left out: no text is tokenised as those."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return max((len(token) for token in tokenizer.get_vocab() if token not in special), default=1)


def max_characters_per_token(tokenizer: Tokenizer) -> int:
    """Longest stretch of a text that one token may stand for."""
    return _MAX_SHRINKING * longest_token(tokenizer)
