"""The grammar of a bundle's graphs and of what they take and give: export makes names by it, the server reads them.

    key_0, value_0                 keys and values of a decoder layer's own tokens, one cache each
    cross_key_0, cross_value_0     those of the source
    last_cross_key_0, ...          those of the source's last token alone
    new_key_0, new_cross_key_0     an output: the cache of that name, with what the graph appended
    step_2_token_ids, step_2_new_key_0
                                   an output of `decode_steps`: what its step 2 gives
    computed_3                     an input of `fill_tokens`: what a graph computed for cache number 3 of a kind

All other names stand for themselves. Nothing here knows shapes; `graph_interfaces` does.
"""

import re
from collections.abc import Iterable
from typing import Final, Literal

__all__ = [
    "CACHE_KINDS",
    "COPYING_GRAPHS",
    "FIRST_GRAPHS",
    "GRAPHS",
    "LAST",
    "MEASURED_GRAPHS",
    "OWN",
    "SOURCE",
    "CacheKind",
    "base_name",
    "cache_kind",
    "cache_names",
    "caches_by_kind",
    "computed_name",
    "output_cache",
    "output_name",
    "step_name",
    "steps_per_run",
]

COPYING_GRAPHS: Final = ("copy_tokens", "fill_tokens", "read_tokens")
"""Graphs that copy tokens between rows; only caches on a device need them."""
GRAPHS: Final = {
    "translation": ("encode", "decode", "decode_steps", "align", *COPYING_GRAPHS),
    "generation": ("prefill", "extend", "decode", "decode_steps", *COPYING_GRAPHS),
}
"""The graphs that a bundle may have, by its task."""
FIRST_GRAPHS: Final = {"translation": ("encode",), "generation": ("extend", "prefill")}
"""Graphs that start an input, by task: a bundle has one of them, older ones perhaps both."""
MEASURED_GRAPHS: Final = {
    "translation": ("encode", "decode", "decode_steps", "align"),
    "generation": ("prefill", "decode", "decode_steps"),
}
"""The graphs whose runs are measured, by task, as metrics name them: `prefill` is also what `extend` does."""

CacheKind = Literal["", "cross_", "last_cross_"]
OWN: Final = ""
SOURCE: Final = "cross_"
LAST: Final = "last_cross_"
CACHE_KINDS: Final[tuple[CacheKind, ...]] = (OWN, SOURCE, LAST)
"""The beginning of a cache's name: of a row's own tokens, of its source, of its source's last token alone."""

_PARTS = ("key", "value")
_CACHE = re.compile(r"(?P<kind>\w*?)(?:key|value)_(?:0|[1-9]\d*)")
_STEP = re.compile(r"step_(0|[1-9]\d*)_(.+)")
_NEW = "new_"


def cache_names(num_layers: int, *kinds: CacheKind) -> tuple[str, ...]:
    """The names of the caches of these kinds, layer by layer, and of a layer kind by kind, the key first."""
    return tuple(f"{kind}{part}_{layer}" for layer in range(num_layers) for kind in kinds for part in _PARTS)


def cache_kind(name: str) -> CacheKind | None:
    """The kind of the cache of this name; None where it is no cache's."""
    match = _CACHE.fullmatch(name)
    return next((kind for kind in CACHE_KINDS if match and kind == match["kind"]), None)


def caches_by_kind(names: Iterable[str]) -> dict[CacheKind, list[str]]:
    """Returns those of `names` that name a cache, by their kinds, in their order."""
    found: dict[CacheKind, list[str]] = {}
    for name in names:
        if (kind := cache_kind(name)) is not None:
            found.setdefault(kind, []).append(name)
    return found


def output_name(cache: str) -> str:
    """The output that is the cache with what a graph appended."""
    return f"{_NEW}{cache}"


def output_cache(output: str) -> str | None:
    """The cache that an output is, of one step or of several; None for other outputs."""
    name = base_name(output)
    cache = name.removeprefix(_NEW)
    return cache if cache != name and cache_kind(cache) is not None else None


def step_name(step: int, output: str) -> str:
    """The output of one step of `decode_steps` that `decode` calls `output`."""
    return f"step_{step}_{output}"


def base_name(name: str) -> str:
    """The name without the number of its step."""
    match = _STEP.fullmatch(name)
    return match[2] if match else name


def steps_per_run(outputs: Iterable[str]) -> int:
    """How many steps a run of a graph with these outputs takes: each gives its tokens."""
    return sum(name != "token_ids" and base_name(name) == "token_ids" for name in outputs)


def computed_name(index: int) -> str:
    """The input of `fill_tokens` for cache number `index` of a kind."""
    return f"computed_{index}"
