"""The grammar of graph names: what export makes by it is what the server reads."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.damaged_bundles import GENERATION, TRANSLATION, copy_of, load, manifest_of, set_value

from dragoman.server.bundle import graph_names
from dragoman.server.bundle.reader import Bundle
from dragoman.server.errors import BundleError
from dragoman.server.operations.metrics import Metrics

FIXTURES = Path(__file__).parents[1] / "fixtures"
layers = st.integers(0, 1100)
kinds = st.sampled_from(graph_names.CACHE_KINDS)


def test_names_are_those_that_committed_bundles_have() -> None:
    assert graph_names.cache_names(2, graph_names.OWN) == ("key_0", "value_0", "key_1", "value_1")
    assert graph_names.cache_names(1, graph_names.SOURCE, graph_names.LAST) == (
        "cross_key_0", "cross_value_0", "last_cross_key_0", "last_cross_value_0",
    )  # fmt: skip
    assert graph_names.output_name("key_3") == "new_key_3"
    assert graph_names.step_name(2, "new_key_3") == "step_2_new_key_3"
    assert graph_names.computed_name(4) == "computed_4"


@given(layers, kinds, layers)
def test_what_is_made_is_read(num_layers: int, kind: graph_names.CacheKind, step: int) -> None:
    names = graph_names.cache_names(min(num_layers, 12), kind)
    assert graph_names.caches_by_kind(names) == ({kind: list(names)} if names else {})
    for cache in names:
        for output in (graph_names.output_name(cache), graph_names.step_name(step, f"new_{cache}")):
            assert graph_names.output_cache(output) == cache
            assert graph_names.cache_kind(output) is None
        assert graph_names.base_name(graph_names.step_name(step, cache)) == cache


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "key_",
        "key_01",
        "key_-1",
        "keys_0",
        "new_key_0",
        "self_key_0",
        "cross_cross_key_0",
        "token_ids",
    ],
)
def test_what_is_no_cache_is_none(name: str) -> None:
    assert graph_names.cache_kind(name) is None
    assert graph_names.output_cache(name) == ("key_0" if name == "new_key_0" else None)
    assert graph_names.caches_by_kind([name]) == {}


def test_steps_are_counted_by_what_they_choose() -> None:
    one = ["token_ids", "log_probabilities", "new_key_0"]
    several = [graph_names.step_name(step, each) for step in range(4) for each in one]
    assert graph_names.steps_per_run(several) == 4
    assert graph_names.steps_per_run(["log_probabilities", "best_token_ids", *one]) == 0


@pytest.mark.parametrize(
    "bundle", sorted(path.parent for path in FIXTURES.glob("*/*/*/bundle.json")), ids=str
)
def test_every_name_of_a_committed_bundle_is_known(bundle: Path) -> None:
    manifest = Bundle.read(bundle).manifest
    known = graph_names.GRAPHS[manifest.task]
    assert set(manifest.graphs) <= set(known)
    assert set(graph_names.caches_by_kind(manifest.graphs["decode"].inputs)) <= set(graph_names.CACHE_KINDS)


@pytest.mark.parametrize(
    ("fixture", "graph"), [(TRANSLATION, "extend"), (GENERATION, "encode"), (GENERATION, "speculate")]
)
def test_a_graph_that_the_task_has_not_is_named_when_the_bundle_is_read(
    fixture: str, graph: str, tmp_path: Path
) -> None:
    bundle = copy_of(fixture, tmp_path)
    graphs = manifest_of(bundle)["graphs"]
    set_value(bundle, "graphs", {**graphs, graph: graphs["decode"]})
    with pytest.raises(BundleError, match=f"bundle has no graph '{graph}'; this server knows "):
        Bundle.read(bundle)


@pytest.mark.parametrize(("name", "other"), [("key_0", "key_7"), ("value_0", "self_value_0")])
def test_a_cache_of_another_name_is_named_when_the_bundle_is_loaded(
    name: str, other: str, tmp_path: Path
) -> None:
    bundle = copy_of(GENERATION, tmp_path)
    inputs = manifest_of(bundle)["graphs"]["decode"]["inputs"]
    set_value(bundle, "graphs/decode/inputs", [other if each == name else each for each in inputs])
    with pytest.raises(BundleError, match=f"'{name}' where the manifest says input '{other}'"):
        load(bundle)


def test_a_run_of_a_graph_that_metrics_do_not_know_is_measured_and_breaks_nothing() -> None:
    metrics = Metrics(cpu_limit_cores=1)
    metrics.for_model("toy", "generation").observe_step("speculate", 0.25, 3)
    sample = metrics.registry.get_sample_value(
        "dragoman_step_duration_seconds_sum", {"model": "toy", "graph": "speculate"}
    )
    assert sample == 0.25
