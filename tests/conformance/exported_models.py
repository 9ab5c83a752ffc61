"""Small models with random weights, exported and loaded as they are served."""

import functools
import random
from pathlib import Path
from typing import Any

import onnx
import torch

from dragoman.common.files import sha256_of
from dragoman.export.graph import Graph
from dragoman.export.graphs import generation_graphs, translation_graphs
from dragoman.export.halves import halved
from dragoman.export.onnx_graphs import to_onnx
from dragoman.export.quantization import quantized
from dragoman.export.row_graphs import row_graphs
from dragoman.model.transformer import Dimensions, LanguageModel, TranslationModel, build_model
from dragoman.server.bundle import reader as bundle
from dragoman.server.bundle.manifest import Manifest
from dragoman.server.execution.backend import Backend

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
    name: str, precision: str
) -> tuple[TranslationModel | LanguageModel, tuple[Graph, ...], dict[str, onnx.ModelProto]]:
    torch.manual_seed(0)
    model = build_model(MODELS[name]).eval()
    exported = model
    if precision == "int8":
        rng = random.Random(0)
        exported = quantized(model, [random_ids(rng, 30) for _ in range(50)])
    elif precision == "fp16":
        exported = halved(model)
    graphs = (
        translation_graphs(exported)
        if isinstance(exported, TranslationModel)
        else generation_graphs(exported)
    )
    models = {graph.name: to_onnx(graph) for graph in graphs}
    if precision == "fp16":
        models |= row_graphs(next(graph for graph in graphs if graph.name == "decode"))
    return model, graphs, models


def random_ids(rng: random.Random, longest: int) -> list[int]:
    return [rng.randrange(4, 120) for _ in range(rng.randint(1, longest))]


def export(
    name: str, folder: Path, precision: str = "fp32", kernels: str = "auto"
) -> tuple[TranslationModel | LanguageModel, Backend]:
    model, _, exported = traced(name, precision)
    dims = model.dims
    for stem, graph in exported.items():
        onnx.save(graph, folder / f"{stem}.onnx")
    translates = dims.task == "translation"
    manifest = Manifest.model_validate(
        {
            "schema_version": 2,
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
                stem: {
                    "file": f"{stem}.onnx",
                    "inputs": [value.name for value in graph.graph.input],
                    "outputs": [value.name for value in graph.graph.output],
                }
                for stem, graph in exported.items()
            },
            "files": {
                path.name: {"sha256": sha256_of(path), "num_bytes": path.stat().st_size}
                for path in folder.iterdir()
            },
            "provenance": {},
            "golden_examples": (),
        }
    )
    return model, Backend.load(
        bundle.Bundle(folder, manifest), provider="cpu", num_threads=1, kernels=kernels
    )
