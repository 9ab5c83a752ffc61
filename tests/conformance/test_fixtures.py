"""The bundles that tests serve are what export makes today: else `make fixtures` makes them anew."""

import functools
import random
from collections import Counter
from collections.abc import Iterable

import onnx
import pytest
import torch
from tests.conformance.backends import FIXTURES

from dragoman.export.graph import Graph
from dragoman.export.graphs import generation_graphs, translation_graphs
from dragoman.export.onnx_graphs import to_onnx
from dragoman.export.quantization import quantized
from dragoman.model.recipe import Recipe
from dragoman.model.transformer import TranslationModel, build_model
from dragoman.server.bundle import graph_names
from dragoman.server.bundle.reader import SCHEMA_VERSION, Bundle
from dragoman.server.engine.trial import check_answers
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.kernels import NO_KERNELS

PRESENT = ("spell/1", "spell/2", "count/1", "count/2")
MAX_BYTES = 500_000
ADVICE = "export makes other graphs now: run `make fixtures`, look at what tests say of the new bundles, commit both"


def read(name: str) -> Bundle:
    return Bundle.read(FIXTURES / "bundles" / name)


@functools.cache
def graphs_of_today(name: str) -> dict[str, Graph]:
    """The graphs of a model of the bundle's dimensions and precision, with other weights."""
    bundle = read(name)
    dims = bundle.manifest.dimensions
    recipe = Recipe.load(bundle.manifest.provenance["recipe"], source=name)
    torch.manual_seed(0)
    model = build_model(recipe.dimensions(dims.vocabulary_size)).eval()
    if bundle.manifest.precision == "int8":
        rng = random.Random(0)
        inputs = [[rng.randrange(4, dims.vocabulary_size) for _ in range(20)] for _ in range(20)]
        model = quantized(model, inputs)
    graphs = translation_graphs(model) if isinstance(model, TranslationModel) else generation_graphs(model)
    return {graph.name: graph for graph in graphs}


def operators(nodes: Iterable[onnx.NodeProto]) -> Counter[tuple[str, str]]:
    return Counter((node.domain, node.op_type) for node in nodes)


def shape_of(model: onnx.ModelProto) -> dict[str, object]:
    """All of a graph but its weights and the names within it."""
    return {
        "inputs": [value.name for value in model.graph.input],
        "outputs": [value.name for value in model.graph.output],
        "operators": operators(model.graph.node),
        "functions": {each.name: operators(each.node) for each in model.functions},
        "versions": {each.domain: each.version for each in model.opset_import},
    }


@pytest.mark.parametrize("name", PRESENT)
def test_bundles_are_of_the_present_schema_and_small(name: str) -> None:
    bundle = read(name)
    manifest = bundle.manifest
    assert manifest.schema_version == SCHEMA_VERSION
    assert manifest.precision == {"1": "fp32", "2": "int8"}[bundle.version]
    first = {"encode", "align"} if manifest.task == "translation" else {"extend"}
    assert set(manifest.graphs) == first | {"decode", "decode_steps"}
    assert {"num_best", "needs_all"} <= set(manifest.graphs["decode"].inputs)
    assert graph_names.steps_per_run(manifest.graphs["decode_steps"].outputs) == 4
    assert len(manifest.golden_examples) == 8
    assert sum(record.num_bytes for record in manifest.files.values()) < MAX_BYTES
    figures = {figure.metric: figure.value for figure in manifest.quality}
    assert figures.get("exact_match", 100) > 95
    assert figures.get("bits_per_byte", 0) < 0.2


@pytest.mark.parametrize("name", PRESENT)
def test_graphs_are_those_that_export_makes_today(name: str) -> None:
    bundle, today = read(name), graphs_of_today(name)
    assert list(today) == list(bundle.manifest.graphs), ADVICE
    for graph in today.values():
        record = bundle.manifest.graphs[graph.name]
        assert (tuple(graph.inputs), tuple(graph.outputs)) == (record.inputs, record.outputs), ADVICE
    for graph_name in (next(iter(today)), "decode"):  # the others are made of the same parts
        committed = onnx.load(bundle.graph_path(graph_name))
        assert shape_of(committed) == shape_of(to_onnx(today[graph_name])), ADVICE


@pytest.mark.parametrize("kernels", ["auto", NO_KERNELS])
@pytest.mark.parametrize("name", PRESENT)
def test_bundles_answer_with_our_kernels_and_without(name: str, kernels: str) -> None:
    backend = Backend.load(read(name), provider="cpu", num_threads=1, kernels=kernels)
    domains = {
        node.domain
        for graph in ("decode", "decode_steps")
        for node in onnx.load(read(name).graph_path(graph)).graph.node
    }
    assert any("dragoman" in domain for domain in domains), "operators of our own are in the graphs"
    check_answers(backend)
