"""The first steps of a lane, before any caller waits for them.

They touch the rows' memory, copy pages that a fork shares, and have native code make what it makes once.
"""

from collections.abc import Sequence
from typing import Any

from dragoman.server.bundle.reader import Bundle
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.api import Leave, Request, Submit
from dragoman.server.engine.worker import LaneWorker
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS

__all__ = ["warm_up", "warm_up_input"]

MAX_TOKENS = 8
"""Enough for a first step and for one call of several steps."""


def warm_up_input(bundle: Bundle) -> Sequence[int]:
    """Returns the tokens of a golden example's text; of a prompt so few that a prefix cache keeps none of them."""
    [text] = [example.text for example in bundle.manifest.golden_examples[:1]] or [""]
    limits = bundle.manifest.limits
    most = limits.max_source_tokens
    if not bundle.manifest.facts.has_source:
        most = min(most, limits.max_context_tokens - MAX_TOKENS, BLOCK_TOKENS - 1)
    ids: list[int] = bundle.tokenizer.encode(text).ids
    return ids[: max(1, most)]


def warm_up(worker: LaneWorker[Any], front: Any, input_ids: Sequence[int]) -> None:
    """Have a lane's worker decode the input, which is told to nobody and counted nowhere.

    Args:
        worker: new: it has no other sequence.
        front: that the worker's port knows nobody by.
        input_ids: what `warm_up_input` returns.
    """
    if not input_ids:
        return
    parameters = DecodingParameters(max_tokens=MAX_TOKENS)
    worker.obey(front, Submit([Request(0, 0, input_ids, parameters)]))
    while worker.has_work:
        worker.take_turn()
    worker.obey(front, Leave())
