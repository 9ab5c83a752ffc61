"""A language model's bundle: prompts longer than a block are verified, and so is what older servers run."""

import dataclasses
import json
import random
from pathlib import Path

import onnx
import pytest

import dragoman.export.exporter
from dragoman.export.exporter import export_run
from dragoman.export.graph import Graph
from dragoman.export.held_out import held_out
from dragoman.export.onnx_graphs import to_onnx
from dragoman.export.quality import reference_quality
from dragoman.model.errors import CorpusError
from dragoman.model.recipe import load_recipe
from dragoman.model.run import load_run
from dragoman.model.training.train import train
from dragoman.model.transformer import build_model
from dragoman.server.bundle.reader import Bundle
from dragoman.server.errors import BundleError
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS

RECIPE = """
name = "abc"
task = "generation"
[corpus]
kind = "text"
train = "train.txt"
validation = "validation.txt"
test = "test.txt"
[tokenizer]
kind = "character"
[model]
width = 16
num_heads = 2
num_decoder_layers = 2
max_target_tokens = 100
dropout = 0.0
[training]
max_steps = 30
batch_tokens = 400
evaluation_interval_steps = 30
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(5)
    for split, num_words in (("train", 3000), ("validation", 300), ("test", 1500)):
        words = ["".join(rng.choices("abcd", k=3)) for _ in range(num_words)]
        (folder / f"{split}.txt").write_text(" ".join(words))
    (folder / "abc.toml").write_text(RECIPE)
    train(load_recipe(str(folder / "abc.toml")), folder / "run", show_progress=False)
    return folder / "run"


def test_a_prompt_of_several_blocks_and_what_runs_without_kernels_are_verified(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: dict[str, onnx.ModelProto] = {}  # tracing takes seconds a graph

    def trace_once(graph: Graph) -> onnx.ModelProto:
        if graph.name not in traced:
            traced[graph.name] = to_onnx(graph)
        return traced[graph.name]

    monkeypatch.setattr(dragoman.export.exporter, "to_onnx", trace_once)
    report = export_run(run, tmp_path / "abc" / "1", num_held_out=50)
    assert report.agreement.num_disagreements == report.agreement.num_batch_differences == 0
    bundle = Bundle.read(tmp_path / "abc" / "1")
    assert set(bundle.manifest.graphs) == {"extend", "decode", "decode_steps"}
    assert set(Backend.load(bundle, provider="cpu", num_threads=1).sessions) == {
        "extend",
        "decode",
        "decode_steps",
    }
    lengths = [len(bundle.tokenizer.encode(example.text).ids) for example in bundle.manifest.golden_examples]
    assert max(lengths) > BLOCK_TOKENS + 1, "a prompt of one block would not show a wrong continuation"

    # What a server without kernels runs, and this one does not.
    for function in (*traced["decode"].functions, *traced["decode_steps"].functions):
        for node in function.node:
            if node.op_type == "Add":
                node.op_type = "Sub"
    with pytest.raises(BundleError, match="golden example"):
        export_run(run, tmp_path / "abc" / "2", num_held_out=50)
    assert not (tmp_path / "abc" / "2").exists()


def test_a_model_of_short_documents_is_verified_on_short_prompts(tmp_path: Path) -> None:
    """No document here is as long as the longest prompt: each gives a prompt as long as it is."""
    rng = random.Random(6)
    lines = ["".join(rng.choices("abcd ", k=rng.randint(1, 30))) for _ in range(600)]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    short = RECIPE.replace('kind = "text"', 'kind = "jsonl"').replace('"train.txt"', '"lines.jsonl"')
    short = short.replace('validation = "validation.txt"\ntest = "test.txt"\n', "test_share = 0.2\n")
    (tmp_path / "short.toml").write_text(short.replace("max_target_tokens = 100", "max_target_tokens = 200"))
    train(load_recipe(str(tmp_path / "short.toml")), tmp_path / "run", show_progress=False)
    run = load_run(tmp_path / "run")
    examples = held_out(run, 1_000)
    assert len(examples.inputs) == len(examples.documents) > 50
    lengths = [len(ids) for ids in examples.inputs]
    assert 1 < min(lengths) < max(lengths) <= 31
    [figure] = reference_quality(run, examples, answers=())
    assert figure.value == pytest.approx(run.metrics["test_bits_per_byte"])
    assert run.tokenizer.encode(examples.texts[0]).ids == examples.inputs[0]


def test_a_model_without_room_for_a_prompt_is_refused_in_one_line(run: Path) -> None:
    learned = load_run(run)
    cramped = build_model(dataclasses.replace(learned.model.dims, max_target_tokens=2))
    with pytest.raises(CorpusError, match="no document gives a prompt of at most 1 tokens"):
        held_out(dataclasses.replace(learned, model=cramped), 10)
