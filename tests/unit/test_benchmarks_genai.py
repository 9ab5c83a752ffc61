"""The graph that onnxruntime-genai is given computes the model: a batch of prompts, then one token after another."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from benchmarks.serving.genai_model import write_genai_model
from benchmarks.serving.generation_subject import Shape, prompts, random_generator
from numpy.typing import NDArray

from dragoman.model.transformer import LanguageModel
from dragoman.server.bundle.manifest import Precision

SHAPE = Shape(layers=2, width=32, heads=4, feed_forward=64, vocabulary=60, context=40)
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS, CAPACITY = 3, 6, 4, 16


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """No bias is 0 and no norm's weight is 1, or one could stand for another."""
    found = random_generator(SHAPE, seed=1).model
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return found


@pytest.fixture(scope="module")
def token_ids(model: LanguageModel) -> NDArray[np.int64]:
    """Prompts with the tokens that follow them."""
    return np.array(prompts(model.dims, NUM_PROMPTS, PROMPT_TOKENS + NEW_TOKENS, seed=3))


@pytest.fixture(scope="module")
def folders(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    root = tmp_path_factory.mktemp("genai")
    found: dict[Precision, Path] = {"fp32": root / "fp32", "int8": root / "int8"}
    for precision, folder in found.items():
        write_genai_model(model, precision, folder)
    return found


def logits_of_steps(folder: Path, token_ids: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Read all prompts at once, then token after token, with past and present in one buffer, as genai does."""
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    decoder, num_rows = config["decoder"], len(token_ids)
    session = onnxruntime.InferenceSession(folder / decoder["filename"], providers=["CPUExecutionProvider"])
    shape = (num_rows, decoder["num_key_value_heads"], CAPACITY, decoder["head_size"])
    binding = session.io_binding()
    buffers = []  # a binding does not keep what it points at
    for layer in range(decoder["num_hidden_layers"]):
        for part in ("key", "value"):
            buffers.append(np.full(shape, np.nan, np.float32))
            cache = onnxruntime.OrtValue.ortvalue_from_numpy(buffers[-1])
            binding.bind_ortvalue_input(decoder["inputs"][f"past_{part}_names"] % layer, cache)
            binding.bind_ortvalue_output(decoder["outputs"][f"present_{part}_names"] % layer, cache)
    binding.bind_output(decoder["outputs"]["logits"])
    start = 0
    for end in range(PROMPT_TOKENS, PROMPT_TOKENS + NEW_TOKENS + 1):
        inputs = {
            "input_ids": np.ascontiguousarray(token_ids[:, start:end]),
            "attention_mask": np.ones((num_rows, end), np.int64),
            "position_ids": np.tile(np.arange(start, end), (num_rows, 1)),
        }
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        session.run_with_iobinding(binding)
        yield binding.get_outputs()[-1].numpy().copy()  # the next step writes to the same memory
        start = end


def expected_logits(model: LanguageModel, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Those of the last prompt token and of each that follows: (steps, B, 1, V)."""
    with torch.no_grad():
        logits = model(torch.from_numpy(token_ids))[:, PROMPT_TOKENS - 1 :]
    found: NDArray[np.float32] = logits.transpose(0, 1)[:, :, None].numpy()
    return found


def test_prompts_and_single_tokens_get_the_models_logits(
    model: LanguageModel, token_ids: NDArray[np.int64], folders: dict[Precision, Path]
) -> None:
    found = np.stack(list(logits_of_steps(folders["fp32"], token_ids)))
    np.testing.assert_allclose(found, expected_logits(model, token_ids), rtol=1e-4, atol=1e-4)


def test_int8_quantises_every_product_as_genais_builder_does(
    model: LanguageModel, token_ids: NDArray[np.int64], folders: dict[Precision, Path]
) -> None:
    nodes = onnx.load(folders["int8"] / "model.onnx").graph.node
    products = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert len(products) == 4 * SHAPE.layers + 1
    assert not any(node.op_type in ("MatMul", "Gemm") for node in nodes)
    for node in products:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert (attributes["bits"], attributes["block_size"], attributes["accuracy_level"]) == (8, 32, 4)
    found = np.stack(list(logits_of_steps(folders["int8"], token_ids)))
    expected = expected_logits(model, token_ids)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.05


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_configuration_names_what_the_graph_has(
    precision: Precision, folders: dict[Precision, Path]
) -> None:
    folder = folders[precision]
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    decoder = config["decoder"]
    graph = onnx.load(folder / decoder["filename"]).graph

    def names(kind: str) -> set[str]:
        layers = range(decoder["num_hidden_layers"])
        return {name % layer if "%d" in name else name for name in decoder[kind].values() for layer in layers}

    assert {value.name for value in graph.input} == names("inputs")
    assert {value.name for value in graph.output} == names("outputs")
    [logits] = (value for value in graph.output if value.name == "logits")
    # By this shape genai knows that there is one token's alone.
    assert [size.dim_value for size in logits.type.tensor_type.shape.dim][1:] == [1, config["vocab_size"]]
