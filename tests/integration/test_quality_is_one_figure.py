"""BLEU and chrF of a model are one figure each: in training, export, `dragoman evaluate` and sacreBLEU itself."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import sacrebleu

from dragoman.cli.bundle_evaluation import evaluate_bundle
from dragoman.cli.evaluation import GREEDY, Evaluation
from dragoman.common.errors import UsageError
from dragoman.export.exporter import export_run
from dragoman.model.recipe import BleuTokenization, load_recipe
from dragoman.model.run import load_run
from dragoman.model.training.train import train
from dragoman.server.bundle.reader import Bundle
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.offline import decode_offline
from dragoman.server.execution.backend import Backend

RECIPE = """
name = "echo"
task = "translation"
[corpus]
kind = "tsv"
train = "pairs.tsv"
validation = "pairs.tsv"
test = "test.tsv"
[tokenizer]
kind = "character"
[model]
width = 32
num_heads = 2
num_encoder_layers = 1
num_decoder_layers = 1
max_source_tokens = 24
max_target_tokens = 40
dropout = 0.0
[training]
max_steps = 300
max_learning_rate = 0.01
batch_tokens = 512
evaluation_interval_steps = 300
[quality]
bleu_tokenization = "char"
ignore_case = true
"""
PAIRS = [(f"{a}{b}{c}", f"{a} {b}. {c} 中{a}-文!") for a in "abcd" for b in "efgh" for c in "ijkl"]
FIGURES = ("exact_match", "bleu", "chrf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose test references differ in case and punctuation, the run of a model that learned it, its bundle."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS))
    references = [target.upper() if place % 2 else target for place, (_, target) in enumerate(PAIRS)]
    references[::3] = [reference.replace(".", " ,") for reference in references[::3]]
    lines = [f"{source}\t{reference}\n" for (source, _), reference in zip(PAIRS, references, strict=True)]
    (folder / "test.tsv").write_text("".join(lines))
    (folder / "echo.toml").write_text(RECIPE)
    train(load_recipe(str(folder / "echo.toml")), folder / "run", show_progress=False)
    export_run(folder / "run", folder / "models" / "echo" / "1")
    return folder


def evaluate(folder: Path, **quality: Any) -> Evaluation:
    """Evaluates the bundle, whose recipe then has these settings of quality."""
    path = folder / "models" / "echo" / "1" / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["provenance"]["recipe"]["quality"] |= quality
    path.write_text(json.dumps(manifest))
    return evaluate_bundle(path.parent, data=folder, limit=None, search=GREEDY, progress=lambda *_: None)


def answers(folder: Path) -> list[str]:
    bundle = Bundle.read(folder / "models" / "echo" / "1")
    backend = Backend.load(bundle, provider="cpu", num_threads=1)
    parameters = DecodingParameters(max_tokens=bundle.manifest.limits.max_output_tokens)
    inputs = [(bundle.tokenizer.encode(source).ids, parameters) for source, _ in PAIRS]
    return [
        bundle.tokenizer.decode(each.best.token_ids) for each in decode_offline(backend, inputs, num_slots=8)
    ]


def test_training_export_and_evaluation_measure_the_same(folder: Path) -> None:
    exported = {
        figure.metric: figure for figure in Bundle.read(folder / "models" / "echo" / "1").manifest.quality
    }
    trained = load_run(folder / "run").metrics
    evaluated = evaluate(folder, bleu_tokenization="char", ignore_case=True)
    assert set(exported) == set(evaluated.metrics) == set(FIGURES)
    for name in FIGURES:
        assert exported[name].value == pytest.approx(trained[f"test_{name}"])
        assert evaluated.metrics[name] == pytest.approx(exported[name].value)
        assert evaluated.signatures.get(name, "") == exported[name].signature


@pytest.mark.parametrize("ignores_case", [False, True])
@pytest.mark.parametrize("tokenization", get_args(BleuTokenization))
def test_evaluation_is_sacrebleus(folder: Path, tokenization: str, ignores_case: bool) -> None:
    evaluated = evaluate(folder, bleu_tokenization=tokenization, ignore_case=ignores_case)
    hypotheses, references = answers(folder), (folder / "test.tsv").read_text().splitlines()
    references = [line.split("\t")[1] for line in references]
    bleu = sacrebleu.BLEU(tokenize=tokenization, lowercase=ignores_case, force=True)
    chrf = sacrebleu.CHRF(lowercase=ignores_case)
    assert evaluated.metrics["bleu"] == pytest.approx(bleu.corpus_score(hypotheses, [references]).score)
    assert evaluated.metrics["chrf"] == pytest.approx(chrf.corpus_score(hypotheses, [references]).score)
    assert evaluated.signatures["bleu"] == str(bleu.get_signature())
    assert evaluated.signatures["chrf"] == str(chrf.get_signature())


def test_how_words_are_cut_makes_a_difference_here(folder: Path) -> None:
    """Or the tests above would hold whatever was measured."""
    found = {
        round(evaluate(folder, bleu_tokenization=each, ignore_case=case).metrics["bleu"], 3)
        for each in ("13a", "zh", "char", "none")
        for case in (True, False)
    }
    assert len(found) == 8


def test_a_recipe_of_another_task_is_refused(folder: Path, tmp_path: Path) -> None:
    """There were no examples then, and so no figures: a bare ValueError, or a division by zero."""
    path = folder / "models" / "echo" / "1" / "bundle.json"
    manifest = json.loads(path.read_text())
    recipe = manifest["provenance"]["recipe"]
    recipe |= {
        "task": "generation",
        "corpus": {"kind": "text", "train": "a.txt", "validation": "a.txt", "test": "a.txt"},
    }
    for name in ("max_source_tokens", "num_encoder_layers"):
        recipe["model"][name] = 0
    other = shutil.copytree(path.parent, tmp_path / "1")
    (other / "bundle.json").write_text(json.dumps(manifest))
    (tmp_path / "a.txt").write_text("one two three")
    with pytest.raises(
        UsageError, match=r"is a translation model, but the recipe that it was trained with is for generation"
    ):
        evaluate_bundle(other, data=tmp_path, limit=None, search=GREEDY, progress=lambda *_: None)
