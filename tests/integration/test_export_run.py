"""From a run to a sealed bundle, or to nothing at all."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

import dragoman.export.exporter
import dragoman.export.verification
from dragoman.cli.export import export_lines
from dragoman.cli.main import main
from dragoman.common.errors import OperationError, UsageError
from dragoman.export.errors import ExportError
from dragoman.export.exporter import export_run
from dragoman.export.graph import Graph
from dragoman.export.onnx_graphs import to_onnx
from dragoman.export.quantization import Int8Linear
from dragoman.export.verification import verify_bundle
from dragoman.model.decoding import Hypothesis, greedy_decode
from dragoman.model.errors import CorpusError
from dragoman.model.recipe import load_recipe
from dragoman.model.training.train import train
from dragoman.server.bundle.reader import Bundle
from dragoman.server.engine.scoring import forced_steps
from dragoman.server.models.discovery import discover

BUNDLES = Path(__file__).parents[1] / "fixtures" / "bundles"

RECIPE = """
name = "shout"
task = "translation"
[corpus]
kind = "tsv"
train = "pairs.tsv"
[tokenizer]
kind = "character"
[model]
width = 16
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
max_source_tokens = 12
max_target_tokens = 12
dropout = 0.0
[training]
max_steps = 30
batch_tokens = 256
evaluation_interval_steps = 30
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "klmn"]
    (folder / "pairs.tsv").write_text("".join(f"{word}\t{word.upper()}\n" for word in words))
    (folder / "shout.toml").write_text(RECIPE)
    train(load_recipe(str(folder / "shout.toml")), folder / "run", show_progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def traced() -> dict[tuple[str, bool, torch.dtype], onnx.ModelProto]:
    """Tracing takes seconds a graph; all exports here are of one run."""
    return {}


@pytest.fixture(autouse=True)
def traced_once(
    monkeypatch: pytest.MonkeyPatch, traced: dict[tuple[str, bool, torch.dtype], onnx.ModelProto]
) -> None:
    def reuse(graph: Graph) -> onnx.ModelProto:
        is_int8 = any(isinstance(module, Int8Linear) for module in graph.module.modules())
        key = graph.name, is_int8, next(graph.module.parameters()).dtype
        if key not in traced:
            traced[key] = to_onnx(graph)
        return traced[key]

    monkeypatch.setattr(dragoman.export.exporter, "to_onnx", reuse)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_bundle_is_sealed_and_verifies(run: Path, tmp_path: Path, precision: Any) -> None:
    bundle = tmp_path / "models" / "shout" / "1"
    report = export_run(run, bundle, precision=precision)
    manifest = Bundle.read(bundle).manifest
    assert manifest.precision == precision
    assert report.agreement.num_batch_differences == 0
    assert {figure.metric for figure in manifest.quality} == {"exact_match", "chrf"}, (
        "targets of one word have no BLEU"
    )
    assert manifest.golden_examples
    assert manifest.verification["num_inputs"] == report.agreement.num_inputs > 0
    assert verify_bundle(bundle).num_golden_examples == len(manifest.golden_examples)
    row_graphs = {"copy_tokens", "fill_tokens"} if precision == "fp16" else set()
    others = row_graphs or {"decode_steps"}
    assert set(manifest.graphs) == {"encode", "decode", "align"} | others
    if precision == "fp32":
        assert report.agreement.num_disagreements == 0
        assert verify_bundle(bundle, run).agreement == report.agreement


@pytest.mark.parametrize(("bundle", "name"), [("spell/2", "vocabulary size"), ("count/2", "task")])
def test_a_bundle_of_another_run_is_refused(run: Path, bundle: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"was not exported from {run}: its {name} is .*, the run's "):
        verify_bundle(BUNDLES / bundle, run)


def test_a_bundle_of_the_same_run_at_another_step_is_refused(run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "models" / "shout" / "1"
    export_run(run, bundle)
    later = shutil.copytree(run, tmp_path / "later")
    record = json.loads((later / "run.json").read_text())
    (later / "run.json").write_text(json.dumps({**record, "step": record["step"] + 5}))
    with pytest.raises(UsageError, match=r"its training step is 30, the run's 35$"):
        verify_bundle(bundle, later)


def test_no_path_of_the_machine_that_trained_is_in_a_bundle(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "shout" / "1")
    folder = tmp_path / "shout" / "1"
    assert str(run.parent) not in (folder / "bundle.json").read_text()
    for graph in ("encode", "decode", "decode_steps"):
        assert b".py" not in (folder / f"{graph}.onnx").read_bytes(), (
            "the exporter's own traces of its source"
        )


def test_a_disagreement_with_pytorch_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_answers(*arguments: Any, **options: Any) -> list[Hypothesis]:
        truth = greedy_decode(*arguments, **options)
        return [
            dataclasses.replace(h, token_ids=[5, *h.token_ids[1:]], margins=[1.0, *h.margins[1:]])
            for h in truth
        ]

    monkeypatch.setattr("dragoman.export.verification.greedy_decode", other_answers)
    with pytest.raises(
        ExportError, match=r"\d+ of \d+ held-out inputs are answered differently from PyTorch"
    ):
        export_run(run, tmp_path / "shout" / "1")
    assert not (tmp_path / "shout").exists(), "not even the folder that was made for it"


def test_activations_beyond_fp16_leave_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU, ONNX Runtime keeps most of fp16 in single precision: an overflow is put in by hand.
    def overflowing(*arguments: Any) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for step, (num_rows, log_probabilities) in enumerate(forced_steps(*arguments)):
            if step == 1:
                log_probabilities[0, 5] = np.nan
            yield num_rows, log_probabilities

    monkeypatch.setattr(dragoman.export.verification, "forced_steps", overflowing)
    with pytest.raises(ExportError, match="the model's activations go beyond fp16"):
        export_run(run, tmp_path / "shout" / "1", precision="fp16")
    assert not (tmp_path / "shout").exists(), "not even the folder that was made for it"


def test_a_tie_is_counted_and_not_failed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_answers(*arguments: Any, **options: Any) -> list[Hypothesis]:
        truth = greedy_decode(*arguments, **options)
        tie = dataclasses.replace(truth[0], token_ids=[4, *truth[0].token_ids[1:]], margins=[1e-6] * 20)
        other = dataclasses.replace(tie, token_ids=[6, *truth[0].token_ids[1:]])
        return [other if truth[0].token_ids[0] == 4 else tie, *truth[1:]]

    monkeypatch.setattr("dragoman.export.verification.greedy_decode", other_answers)
    report = export_run(run, tmp_path / "shout" / "1")
    assert (report.agreement.num_ties, report.agreement.num_disagreements) == (1, 0)


def test_a_failed_export_keeps_the_bundle_that_was_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "shout" / "1"
    export_run(run, bundle)
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}

    def disk_full(path: Path, content: bytes | str) -> None:
        raise OperationError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(dragoman.export.exporter, "atomic_write", disk_full)
    with pytest.raises(OperationError, match="No space left on device"):
        export_run(run, bundle, replaces=True)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["1"]


def test_figures_in_fp32_stand_beside_those_of_a_bundle_that_rounds(run: Path, tmp_path: Path) -> None:
    exact = export_run(run, tmp_path / "shout" / "1")
    assert exact.fp32_quality == ()
    assert export_lines(exact)[-2:] == [
        f"{figure.metric}: {figure.value:.4g} ({figure.num_examples} examples, {figure.data})"
        for figure in exact.quality
    ]
    rounded = export_run(run, tmp_path / "shout" / "2", precision="int8")
    assert rounded.fp32_quality == exact.quality, "PyTorch's own answers, and an fp32 bundle gives the same"
    heading, *rows, data = export_lines(rounded)[-4:]
    assert heading.split() == ["quality", "fp32", "int8"]
    assert [row.split() for row in rows] == [
        [fp32.metric, f"{fp32.value:.4g}", f"{int8.value:.4g}"]
        for fp32, int8 in zip(exact.quality, rounded.quality, strict=True)
    ]
    assert data == f"(on {exact.quality[0].num_examples} examples, shout test split)"
    manifest = json.loads((tmp_path / "shout" / "2" / "bundle.json").read_text())
    assert manifest["verification"]["fp32_quality"] == {
        figure.metric: figure.value for figure in exact.quality
    }


def test_the_manifest_is_plain_json(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "shout" / "1")
    manifest = json.loads((tmp_path / "shout" / "1" / "bundle.json").read_text())
    assert manifest["provenance"]["recipe"]["name"] == "shout"
    graphs = {f"{graph}.onnx" for graph in ("encode", "decode", "decode_steps", "align")}
    assert set(manifest["files"]) == graphs | {"tokenizer.json"}


def test_where_nothing_held_out_fits_the_model_there_is_one_line_and_no_bundle(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    lines = "".join(f"{'a' * 20}{number}\tA\n" for number in range(100))
    (tmp_path / "data" / "pairs.tsv").write_text(lines)
    with pytest.raises(CorpusError, match="no source fits the model's limit of 12 tokens"):
        export_run(run, tmp_path / "shout" / "1", data=tmp_path / "data")
    assert not (tmp_path / "shout").exists()


def test_the_command_takes_the_next_version_and_says_what_it_wrote(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run)]) == 0
    assert main(["export", str(run), "--out", "models/run"]) == 0
    captured = capsys.readouterr()
    assert "bundle: models/run/1 (fp32" in captured.out
    assert "bundle: models/run/2 (fp32" in captured.out
    assert captured.err.splitlines() == [
        "models/run: its next free version is 1",
        "next: dragoman serve --models models",
        "models/run: its next free version is 2",
        "next: dragoman serve --models models",
    ]
    [versions], not_loaded = discover(Path("models"))
    assert [path.name for path in versions] == ["2", "1"]
    assert not not_loaded
    assert main(["export", str(run), "--out", "models/run/2"]) == 2
    assert "models/run/2 is a bundle already: give --force" in capsys.readouterr().err
    assert main(["export", str(run), "--out", "models/run/2", "--force", "--precision", "int8"]) == 0
    assert Bundle.read(Path("models/run/2")).manifest.precision == "int8"


def test_a_corpus_that_changed_since_training_is_told_of(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copyfile(run.parent / "pairs.tsv", data / "pairs.tsv")
    command = ["export", str(run), "--data", str(data), "--out", str(tmp_path / "shout")]
    assert main(command) == 0
    assert "since" not in capsys.readouterr().err, "the same content, in another place"
    with (data / "pairs.tsv").open("a") as file:
        file.write("zzz\tZZZ\n")
    assert main(command) == 0
    assert f"note: since {run} was trained, pairs.tsv has changed (" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "shout" / "2" / "bundle.json").read_text())
    [change] = manifest["verification"]["corpus_changes"]
    assert change.startswith("pairs.tsv has changed (")
