"""The inputs and outputs of each graph of a bundle, and a check that a loaded graph has them.

The engine binds arrays by these names, types and sizes. `None` stands for a size that differs from run to run.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnxruntime as ort

from dragoman.server.bundle import graph_names
from dragoman.server.bundle.manifest import Manifest
from dragoman.server.bundle.reader import Bundle
from dragoman.server.errors import BundleError

__all__ = ["check_interface"]

Shape = tuple[int | None, ...]

_TOKEN_IDS = {"token_ids", "source_ids", "target_ids", "best_token_ids"}
_INT64 = {*_TOKEN_IDS, "num_best", "needs_all", "sources", "targets", "offsets"}
_INT32 = {"lengths", "source_lengths"}
_FLOAT = {"log_probabilities", "best", "attention"}


@dataclass(frozen=True, slots=True)
class _Interface:
    """Names with their shapes; a shape of None is not looked at."""

    inputs: Mapping[str, Shape | None]
    outputs: Mapping[str, Shape | None]
    optional_outputs: frozenset[str] = field(default_factory=frozenset)


def check_interface(bundle: Bundle, name: str, session: ort.InferenceSession) -> None:
    """Check that the graph `name`, loaded as `session`, can be bound as the engine binds it.

    Raises:
        BundleError: naming the first input or output that is missing, unknown, or of another type or size.
    """
    graph = f"{bundle.graph_path(name)}: graph {name!r}"
    record, expected = bundle.manifest.graphs[name], _interfaces(bundle.manifest)[name]
    for kind, values, recorded, wanted, optional in (
        ("input", session.get_inputs(), record.inputs, expected.inputs, frozenset[str]()),
        ("output", session.get_outputs(), record.outputs, expected.outputs, expected.optional_outputs),
    ):
        given = tuple(value.name for value in values)
        for given_name, recorded_name in itertools.zip_longest(given, recorded):
            if given_name != recorded_name:
                raise BundleError(
                    f"{graph} has {_named(kind, given_name)} where the manifest says {_named(kind, recorded_name)}"
                )
        if missing := [each for each in wanted if each not in given]:
            raise BundleError(f"{graph} has no {kind} {missing[0]!r}; it has {_list(given)}")
        if unknown := [each for each in given if each not in wanted and each not in optional]:
            raise BundleError(f"{graph} has an {kind} {unknown[0]!r}, which the engine does not know")
        for value in values:
            _check_value(graph, kind, value, wanted.get(value.name), bundle.manifest)


def _check_value(graph: str, kind: str, value: Any, shape: Shape | None, manifest: Manifest) -> None:
    expected_type = _type_of(value.name, manifest)
    if value.type != expected_type:
        raise BundleError(f"{graph}: {kind} {value.name!r} is a {value.type}, not a {expected_type}")
    if shape is None:
        return
    fits = len(value.shape) == len(shape) and all(
        not isinstance(given, int) or wanted is None or given == wanted
        for given, wanted in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise BundleError(
            f"{graph}: {kind} {value.name!r} has shape {_shape(value.shape)}, by the manifest it is {_shape(shape)}"
        )


def _type_of(name: str, manifest: Manifest) -> str:
    base = graph_names.base_name(name)
    if base in _INT64:
        return "tensor(int64)"
    if base in _INT32:
        return "tensor(int32)"
    if base in _FLOAT or manifest.precision != "fp16":
        return "tensor(float)"
    return "tensor(float16)"


def _interfaces(manifest: Manifest) -> dict[str, _Interface]:
    """Returns the interface of every graph that a server may load, by the graph's name."""
    has_source = manifest.facts.has_source
    own = _caches(manifest, graph_names.OWN)
    source = _caches(manifest, graph_names.SOURCE, graph_names.LAST) if has_source else {}
    small: dict[str, Shape | None] = dict.fromkeys(
        ("token_ids", "lengths", *(("source_lengths",) if has_source else ())), (None,)
    )
    step = {**small, **own, **source}
    kept = {graph_names.output_name(cache): shape for cache, shape in own.items()}
    reading = {
        "encode": _Interface(_sources(), source),
        "align": _Interface({**_sources(), "target_ids": (None, None)}, {"attention": (None, None, None)}),
        "prefill": _Interface({"token_ids": (None, None)}, own),
        "extend": _Interface({"token_ids": (1, None), "lengths": (1,), **own}, kept),
    }
    return reading | _step_interfaces(manifest, step, kept, source) | _copying_interfaces(len(own))


def _step_interfaces(
    manifest: Manifest,
    inputs: Mapping[str, Shape | None],
    kept: Mapping[str, Shape | None],
    source: Iterable[str],
) -> dict[str, _Interface]:
    """Returns the interfaces of `decode`, which chooses no tokens before version 2, and of `decode_steps`."""
    choice: dict[str, Shape | None] = {"num_best": (1,), "needs_all": (1,)}
    chosen: dict[str, Shape | None] = {"best": (None, None), "best_token_ids": (None, None)}
    if manifest.schema_version == 1 and "num_best" not in manifest.graphs["decode"].inputs:
        choice, chosen = {}, {}
    outputs = {"log_probabilities": (None, manifest.dimensions.vocabulary_size), **chosen, **kept}
    one_step = {"token_ids": (None,), "log_probabilities": (None,), **kept}
    record = manifest.graphs.get("decode_steps")
    steps = range(max(1, graph_names.steps_per_run(record.outputs))) if record else ()
    source_kept = [graph_names.output_name(cache) for cache in source]
    return {
        "decode": _Interface({**choice, **inputs}, outputs, frozenset(source_kept)),
        "decode_steps": _Interface(
            inputs,
            {graph_names.step_name(step, each): shape for step in steps for each, shape in one_step.items()},
            frozenset(graph_names.step_name(step, each) for step in steps for each in source_kept),
        ),
    }


def _copying_interfaces(num_caches: int) -> dict[str, _Interface]:
    """Returns the interfaces of the graphs that copy tokens on a device."""
    computed = tuple(graph_names.computed_name(index) for index in range(num_caches))
    return {
        name: _Interface(dict.fromkeys(inputs), dict.fromkeys((output,)))
        for name, inputs, output in (
            ("copy_tokens", ("sources", "targets", "offsets", "caches"), "new_caches"),
            ("fill_tokens", (*computed, "targets", "offsets", "caches"), "new_caches"),
            ("read_tokens", ("sources", "offsets", "caches"), "tokens"),
        )
    }


def _sources() -> dict[str, Shape | None]:
    return {"source_ids": (None, None), "source_lengths": (None,)}


def _caches(manifest: Manifest, *kinds: graph_names.CacheKind) -> dict[str, Shape | None]:
    dims = manifest.dimensions
    whole = None, dims.num_kv_heads, None, dims.head_size
    last = None, 1, dims.num_kv_heads * dims.head_size
    return {
        name: last if kind == graph_names.LAST else whole
        for kind in kinds
        for name in graph_names.cache_names(dims.num_decoder_layers, kind)
    }


def _named(kind: str, name: str | None) -> str:
    return f"no {kind}" if name is None else f"{kind} {name!r}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _shape(shape: Iterable[object]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
