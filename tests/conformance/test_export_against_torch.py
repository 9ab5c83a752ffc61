"""The exported graphs, run by the serving backend, against the PyTorch model they come from."""

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.graphs import Graph, generation_graphs, translation_graphs
from export.onnx_graphs import to_onnx
from export.quantization import quantize
from export.verification import Agreement, compare, decode_both_ways
from model.decoding import greedy_decode, score
from model.transformer import Dimensions, LanguageModel, TranslationModel, build_model
from server import bundle
from server.backend import Backend
from server.prefix_cache import BLOCK_TOKENS
from server.scoring import score_offline

SHARED: dict[str, Any] = {
    "vocabulary_size": 120,
    "width": 64,
    "feed_forward_width": 96,
    "max_target_tokens": 40,
}
MODELS = {
    "translation as in the paper": Dimensions(
        task="translation", num_heads=4, num_kv_heads=4, num_encoder_layers=2, num_decoder_layers=2,
        max_source_tokens=30, norm="post",
        **SHARED,
    ),
    "translation, pre-norm, grouped heads, SwiGLU": Dimensions(
        task="translation", num_heads=8, num_kv_heads=2, num_encoder_layers=1, num_decoder_layers=1,
        max_source_tokens=30, activation="swiglu", **SHARED,
    ),
    "generation, GELU": Dimensions(
        task="generation", num_heads=4, num_kv_heads=4, num_encoder_layers=0, num_decoder_layers=2,
        max_source_tokens=0, activation="gelu",
        **SHARED,
    ),
    "generation, one key head": Dimensions(
        task="generation", num_heads=4, num_kv_heads=1, num_encoder_layers=0, num_decoder_layers=1,
        max_source_tokens=0, **SHARED,
    ),
}  # fmt: skip


@functools.cache  # tracing takes seconds a graph
def traced(
    name: str,
) -> tuple[TranslationModel | LanguageModel, tuple[Graph, ...], dict[str, onnx.ModelProto]]:
    torch.manual_seed(0)
    model = build_model(MODELS[name]).eval()
    graphs = translation_graphs(model) if isinstance(model, TranslationModel) else generation_graphs(model)
    return model, graphs, {graph.name: to_onnx(graph) for graph in graphs}


def export(
    name: str, folder: Path, precision: str = "fp32"
) -> tuple[TranslationModel | LanguageModel, Backend]:
    model, graphs, exported = traced(name)
    dims = model.dims
    for stem, graph in exported.items():
        onnx.save(quantize(graph) if precision == "int8" else graph, folder / f"{stem}.onnx")
    translates = dims.task == "translation"
    manifest = bundle.Manifest.model_validate(
        {
            "schema_version": 1,
            "task": dims.task,
            "precision": precision,
            "dimensions": {**vars(dims), "head_size": dims.head_size, "num_parameters": 0},
            "limits": {
                "max_source_tokens": dims.max_source_tokens or 39,
                "max_output_tokens": 41 if translates else 39,
                "max_context_tokens": 41 if translates else 40,
            },
            "special_tokens": {"padding": 0, "unknown": 1, "begin": 2, "end": 3},
            "graphs": {
                g.name: {"file": f"{g.name}.onnx", "inputs": tuple(g.inputs), "outputs": g.outputs}
                for g in graphs
            },
            "files": {},
            "provenance": {},
            "golden_examples": (),
        }
    )
    return model, Backend.load(bundle.Bundle(folder, manifest), provider="cpu", num_threads=1)


def agreement(model: TranslationModel | LanguageModel, backend: Backend) -> Agreement:
    rng = random.Random(1)
    inputs = [[rng.randrange(4, 120) for _ in range(rng.randint(1, 20))] for _ in range(100)]
    reference = greedy_decode(model, inputs, max_tokens=16)
    decoded = decode_both_ways(backend, inputs, 16, lambda _: None)
    return compare(backend, model, inputs, reference, decoded)


@pytest.mark.parametrize("name", MODELS)
def test_every_token_and_logit_agrees(name: str, tmp_path: Path) -> None:
    found = agreement(*export(name, tmp_path))
    assert found.num_disagreements == 0
    assert found.num_equal_inputs + found.num_ties == 100
    assert found.num_batch_differences == 0
    assert found.max_logit_difference < 1e-4


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("generation")])
def test_a_prompt_read_in_blocks_and_from_the_cache_gives_torch_s_logits(name: str, tmp_path: Path) -> None:
    model, backend = export(name, tmp_path)
    assert isinstance(model, LanguageModel)
    rows = backend.with_prefix_cache(1 << 20).rows(1)
    rng = random.Random(3)
    prompt = [rng.randrange(4, 120) for _ in range(BLOCK_TOKENS + 6)]
    for last in (5, 6):
        rows.start([0], [[*prompt, last]])
        with torch.inference_mode():
            expected = model(torch.tensor([[*prompt, last]]))[0, -1].log_softmax(dim=-1)
        np.testing.assert_allclose(rows.decode(1)[0], expected, atol=1e-4)


def test_int8_is_batch_invariant_and_near(tmp_path: Path) -> None:
    found = agreement(*export("translation, pre-norm, grouped heads, SwiGLU", tmp_path, "int8"))
    assert found.num_batch_differences == 0
    assert 1e-4 < found.max_logit_difference < 2.0, "random weights: quantisation shows, but does not break"


def test_scores_of_given_text_agree_with_torch(tmp_path: Path) -> None:
    model, backend = export("generation, GELU", tmp_path)
    rng = random.Random(2)
    inputs = [[2, *(rng.randrange(4, 120) for _ in range(rng.randint(0, 9)))] for _ in range(40)]
    outputs = [[rng.randrange(3, 120) for _ in range(rng.randint(1, 25))] for _ in range(40)]
    expected = score(model, inputs, outputs)
    for ours, theirs in zip(score_offline(backend, inputs, outputs), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_integer_products_are_exact_on_this_machine() -> None:
    """Seven-bit weights keep MatMulInteger from saturating on CPUs that add byte products in 16 bits."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 64)).astype(np.float32)
    x = rng.standard_normal((17, 256)).astype(np.float32) * 10
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(quantize(model).SerializeToString(), providers=["CPUExecutionProvider"])
    column_scales = (np.abs(weight).max(0) / 63).astype(np.float32)
    row_scales = np.abs(x).max(1, keepdims=True) * np.float32(1 / 127)
    exact = np.round(x / row_scales).astype(np.int64) @ np.round(weight / column_scales).astype(np.int64)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], exact * row_scales * column_scales, rtol=1e-5)


def test_a_row_of_zeros_quantises_to_zeros() -> None:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [
            numpy_helper.from_array(np.ones((4, 8), np.float32), "w"),
            numpy_helper.from_array(np.arange(4, dtype=np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(quantize(model).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.zeros((1, 8), np.float32)})[0], [[0, 1, 2, 3]])
