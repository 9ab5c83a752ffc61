"""The tokens of a text so far and its runs of tokens, kept so that a step looks at the last token alone."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Repeats"]

_TOKENS_MORE = 64
_Followers = dict[tuple[int, ...], tuple[int, ...]]


@dataclass(slots=True)
class Repeats:
    """The tokens that a text has, and those that would complete a run of tokens that it has.

    Attributes:
        run_length: tokens of the runs that `completing` looks for; 0: it looks for none.
        beginning: the text's last tokens, one less than a run.
        followers: by the beginning of a run, the tokens that came after it.
        context_followers: the same of the text's context, which forks share.
        token_ids: the tokens of `seen_ids`, and room for more.
        seen_ids: each token of the text once.
    """

    run_length: int = 0
    beginning: tuple[int, ...] = ()
    followers: _Followers = field(default_factory=dict)
    context_followers: _Followers = field(default_factory=dict)
    token_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    seen_ids: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, context: Sequence[int], run_length: int) -> "Repeats":
        """A text that begins with `context`, which is read once for all sequences of a call."""
        read = _read(tuple(context), run_length)
        return dataclasses.replace(read.fork(), followers={}, context_followers=read.followers)

    @property
    def seen(self) -> NDArray[np.int64]:
        """Each token that the text has, once."""
        return self.token_ids[: len(self.seen_ids)]

    @property
    def completing(self) -> NDArray[np.int64]:
        """The tokens that would complete a run that the text has."""
        if self.run_length == 1:
            return self.seen
        found = self.context_followers.get(self.beginning, ()) + self.followers.get(self.beginning, ())
        return np.array(found, np.int64)

    def append(self, token_id: int) -> None:
        """The text goes on with a token."""
        if token_id not in self.seen_ids:
            if len(self.seen_ids) == len(self.token_ids):
                more = np.zeros(len(self.token_ids) + _TOKENS_MORE, np.int64)
                self.token_ids = np.concatenate([self.token_ids, more])
            self.token_ids[len(self.seen_ids)] = token_id
            self.seen_ids.add(token_id)
        if self.run_length > 1:
            if len(self.beginning) == self.run_length - 1:
                followers = self.followers.get(self.beginning, ())
                if token_id not in followers:
                    self.followers[self.beginning] = (*followers, token_id)
            self.beginning = (*self.beginning, token_id)[1 - self.run_length :]

    def fork(self) -> "Repeats":
        """The same text, which goes on by itself."""
        return dataclasses.replace(
            self,
            followers=self.followers.copy(),  # its values never change
            token_ids=self.token_ids.copy(),
            seen_ids=self.seen_ids.copy(),
        )


@functools.lru_cache(maxsize=8)
def _read(context: tuple[int, ...], run_length: int) -> Repeats:
    repeats = Repeats(run_length)
    for token_id in context:
        repeats.append(token_id)
    return repeats
