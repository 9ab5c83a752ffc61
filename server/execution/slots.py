"""The token that each slot feeds next, and how many tokens each slot holds.

`Slots` is the only owner of these numbers. They are the small inputs of a decode step, beside the caches of keys and
values. Graphs are bound to them by address, so they stay where they are.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Slots"]


class Slots:
    """Token ids and lengths of `num_slots` slots. Slot i is row i of every cache and of every step.

    Attributes:
        num_slots: how many there are.
        inputs: read-only views of the numbers of all slots, by the name of the step's input: `token_ids` (slots,)
            int64, the token that each slot feeds into the next step; `lengths` (slots,) int32, the tokens in the slot's
            own cache; `source_lengths` (slots,) int32, the tokens of the slot's source.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._token_ids: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self._num_tokens: NDArray[np.int32] = np.zeros(num_slots, np.int32)
        # 1 where there is no source: a slot that was never started is harmless.
        self._num_source_tokens: NDArray[np.int32] = np.ones(num_slots, np.int32)
        self.inputs: Mapping[str, NDArray[Any]] = MappingProxyType(
            {
                "token_ids": _read_only(self._token_ids),
                "lengths": _read_only(self._num_tokens),
                "source_lengths": _read_only(self._num_source_tokens),
            }
        )

    def start(
        self,
        slots: Sequence[int],
        token_ids: Sequence[int] | int,
        num_tokens: Sequence[int] | int,
        num_source_tokens: Sequence[int] | int | None = None,
    ) -> None:
        """Begin `slots`: set the first token that each feeds, and the tokens that it and its source hold already."""
        index = list(slots)
        self._token_ids[index] = token_ids
        self._num_tokens[index] = num_tokens
        if num_source_tokens is not None:
            self._num_source_tokens[index] = num_source_tokens

    def feed(self, token_ids: Sequence[int] | NDArray[np.int64]) -> None:
        """Set the token that each of the first `len(token_ids)` slots feeds next."""
        self._token_ids[: len(token_ids)] = token_ids

    def feed_to(self, slots: Sequence[int], token_ids: Sequence[int]) -> None:
        """Set the token that each of `slots` feeds next."""
        self._token_ids[list(slots)] = token_ids

    def advance(self, num_slots: int, num_steps: int = 1) -> None:
        """Count the tokens that the first `num_slots` slots have fed in `num_steps` steps."""
        self._num_tokens[:num_slots] += num_steps

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy all numbers of slots `sources`, one for each target, to slots `targets`; no slot is both."""
        from_, to = list(sources), list(targets)
        for numbers in (self._token_ids, self._num_tokens, self._num_source_tokens):
            numbers[to] = numbers[from_]

    def fork(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """As `copy`, for slots that have the same source and know already what they feed next."""
        self._num_tokens[list(targets)] = self._num_tokens[list(sources)]

    def num_tokens(self, slots: Sequence[int]) -> list[int]:
        """Returns the number of tokens that each of `slots` holds."""
        counts: list[int] = self._num_tokens[list(slots)].tolist()
        return counts

    def num_source_tokens(self, slots: Sequence[int]) -> list[int]:
        """Returns the number of tokens of the source of each of `slots`."""
        counts: list[int] = self._num_source_tokens[list(slots)].tolist()
        return counts

    def max_tokens(self, num_slots: int) -> int:
        """Returns the number of tokens of the longest of the first `num_slots` slots."""
        return int(self._num_tokens[:num_slots].max())

    def seek(self, num_tokens: int) -> None:
        """Let all slots hold `num_tokens` tokens, whatever lies in their caches: a trial starts at the limits."""
        self._num_tokens[:] = num_tokens


def _read_only(numbers: NDArray[Any]) -> NDArray[Any]:
    view = numbers.view()
    view.flags.writeable = False
    return view
