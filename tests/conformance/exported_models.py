"""Small models with random weights, exported and loaded as they are served."""

import fcntl
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch

from dragoman.common.files import sha256_of
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


def traced(name: str, precision: str) -> Path:
    """A folder with the model's graphs. Tracing takes seconds: one process of a run of tests does it for all."""
    folder = Path(os.environ["TESTS_SHARED_FOLDER"]) / f"{list(MODELS).index(name)}-{precision}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            unfinished.mkdir()
            for stem, graph in _graphs(build(name), precision):
                onnx.save(graph, unfinished / f"{stem}.onnx")
            unfinished.rename(folder)
    return folder


def build(name: str) -> TranslationModel | LanguageModel:
    torch.manual_seed(0)
    return build_model(MODELS[name]).eval()


def _graphs(model: TranslationModel | LanguageModel, precision: str) -> Iterator[tuple[str, onnx.ModelProto]]:
    if precision == "int8":
        rng = random.Random(0)
        model = quantized(model, [random_ids(rng, 30) for _ in range(50)])
    elif precision == "fp16":
        model = halved(model)
    graphs = translation_graphs(model) if isinstance(model, TranslationModel) else generation_graphs(model)
    yield from ((graph.name, to_onnx(graph)) for graph in graphs)
    if precision == "fp16":
        yield from row_graphs(next(graph for graph in graphs if graph.name == "decode"))


def random_ids(rng: random.Random, longest: int) -> list[int]:
    return [rng.randrange(4, 120) for _ in range(rng.randint(1, longest))]


def export(
    name: str, folder: Path, precision: str = "fp32", kernels: str = "auto"
) -> tuple[TranslationModel | LanguageModel, Backend]:
    model = build(name)
    dims = model.dims
    graphs = sorted(traced(name, precision).iterdir())
    for path in graphs:
        shutil.copy(path, folder)
    exported = {path.stem: onnx.load(path) for path in graphs}
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
