"""Training end to end on corpora of seconds: it learns, it repeats, and it fails in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from tests.trees import tree

from dragoman.common.errors import UsageError
from dragoman.model.decoding import greedy_decode
from dragoman.model.errors import CorpusError, TrainingError
from dragoman.model.recipe import Recipe, load_recipe
from dragoman.model.run import load_run
from dragoman.model.training.step import TrainingStep
from dragoman.model.training.train import Beginning, _reads_standard_input, train

pytestmark = pytest.mark.usefixtures("one_core", "no_charts")


def spell(number: int) -> tuple[str, str]:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return " ".join(names[int(digit)] for digit in str(number)), str(number)


def write_numbers(folder: Path) -> None:
    folder.mkdir()
    lines = ["\t".join(spell(number)) for number in range(100)]
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")


def translation(folder: Path, **training: object) -> Recipe:
    return Recipe.load(
        {
            "name": "numbers",
            "task": "translation",
            "corpus": {"kind": "tsv", "folder": str(folder), "train": "train.tsv"},
            "tokenizer": {"kind": "character"},
            "model": {
                "width": 32,
                "num_heads": 2,
                "num_encoder_layers": 1,
                "num_decoder_layers": 1,
                "max_source_tokens": 16,
                "max_target_tokens": 4,
                "dropout": 0.0,
            },
            "training": {
                "max_steps": 20,
                "batch_tokens": 256,
                "max_learning_rate": 1e-2,
                "warmup_steps": 10,
                "schedule": "cosine",
                "label_smoothing": 0.0,
                "evaluation_interval_steps": 10,
                "average_checkpoints": 2,
                **training,
            },
        },
        source="test",
    )


def generation(folder: Path, **training: object) -> Recipe:
    recipe = translation(folder, **training).model_dump()
    recipe["model"] |= {"num_encoder_layers": 0, "max_source_tokens": 0, "max_target_tokens": 16}
    corpus = {
        "kind": "text",
        "folder": str(folder),
        "train": "*.txt",
        "validation_share": 0.2,
        "test_share": 0.2,
    }
    return Recipe.load({**recipe, "task": "generation", "corpus": corpus}, source="test")


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    write_numbers(tmp_path / "numbers")
    return tmp_path / "numbers"


@pytest.fixture
def rhymes(tmp_path: Path) -> Path:
    folder = tmp_path / "rhymes"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"verse {number}\n" + "row, row, row your boat\n" * 5)
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_translation_is_learned_and_leaves_a_run(numbers: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs/numbers"
    summary = train(
        translation(numbers, max_steps=300, evaluation_interval_steps=100), out, show_progress=False
    )
    assert summary.outcome.num_steps == 300
    assert summary.outcome.stopped_by == "max_steps"
    assert summary.metrics["validation_loss"] < 0.5

    run = load_run(out)
    assert run.metrics == summary.metrics
    # No target has the four words that BLEU needs.
    assert set(run.metrics) == {"validation_loss", "test_exact_match", "test_chrf"}
    known = [spell(number) for number in range(0, 100, 7)]
    hypotheses = greedy_decode(run.model, [run.tokenizer.encode(source).ids for source, _ in known], 5)
    answers = [run.tokenizer.decode(hypothesis.token_ids) for hypothesis in hypotheses]
    right = sum(answer == target for answer, (_, target) in zip(answers, known, strict=True))
    assert right >= len(known) - 1

    names = {path.name for path in out.iterdir()}
    assert names == {
        "checkpoints",
        "corpus.json",
        "metrics.jsonl",
        "model.safetensors",
        "recipe.json",
        "report.html",
        "run.json",
        "samples.jsonl",
        "state",
        "tensorboard",
        "tokenizer.json",
    }
    figures = lines_of(out / "metrics.jsonl")
    losses = [line["loss"] for line in figures if "loss" in line]
    assert len(losses) == 30
    assert losses[-1] < 0.1 < 1.0 < losses[0]
    validations = [line["step"] for line in figures if "validation_loss" in line]
    assert validations == [100, 200, 300, 300]  # and what the final weights have
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(10, 310, 10))


def test_a_language_model_learns(rhymes: Path, tmp_path: Path) -> None:
    summary = train(generation(rhymes, max_steps=60), tmp_path / "run", show_progress=False)
    assert set(summary.metrics) == {"validation_loss", "validation_bits_per_byte", "test_bits_per_byte"}
    assert summary.metrics["test_bits_per_byte"] < 2.0  # untrained: 4.5
    run = load_run(tmp_path / "run")
    [hypothesis] = greedy_decode(run.model, [run.tokenizer.encode("row, r").ids], 5)
    assert run.tokenizer.decode(hypothesis.token_ids) == "ow, r"


def test_the_same_seed_gives_the_same_weights(numbers: Path, rhymes: Path, tmp_path: Path) -> None:
    for make, data in ((translation, numbers), (generation, rhymes)):
        runs = [tmp_path / f"{data.name}-{name}" for name in ("one", "again", "other")]
        for out in runs:
            recipe = make(data, max_minutes=10)
            seeded = recipe.model_copy(update={"seed": 2}) if out.name.endswith("other") else recipe
            model = seeded.model.model_copy(update={"dropout": 0.1})
            train(seeded.model_copy(update={"model": model}), out, show_progress=False)
        one, again, other = [(out / "model.safetensors").read_bytes() for out in runs]
        assert one == again
        assert one != other


def test_accumulation_sums_over_batches(numbers: Path, tmp_path: Path) -> None:
    recipe = translation(numbers, max_steps=6, accumulation_steps=3, batch_tokens=64)
    summary = train(recipe, tmp_path / "run", show_progress=False)
    assert summary.outcome.num_steps == 6
    single = train(
        translation(numbers, max_steps=6, batch_tokens=64), tmp_path / "single", show_progress=False
    )
    assert summary.outcome.num_tokens > 2 * single.outcome.num_tokens


def test_training_stops_when_validation_stops_improving(numbers: Path, tmp_path: Path) -> None:
    recipe = translation(
        numbers,
        max_steps=400,
        evaluation_interval_steps=5,
        patience=3,
        max_learning_rate=1e-9,
        schedule="constant",
        warmup_steps=10_000,  # a rate so low that nothing changes: only the first evaluation is the best
    )
    summary = train(recipe, tmp_path / "run", show_progress=False)
    assert summary.outcome.stopped_by == "patience"
    assert summary.outcome.num_steps < 400


def test_time_ends_training(numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, run = 1000.0, TrainingStep.run

    def slow(*arguments: Any, **named: Any) -> Any:
        nonlocal now_s
        now_s += 0.5
        return run(*arguments, **named)

    monkeypatch.setattr("time.monotonic", lambda: now_s)
    monkeypatch.setattr(TrainingStep, "run", slow)
    recipe = translation(numbers, max_steps=1_000_000, max_minutes=1.0)
    summary = train(recipe, tmp_path / "run", show_progress=False)
    assert summary.outcome.stopped_by == "max_minutes"
    # A little less than the limit is right: the time of the last validation is kept back beforehand.
    assert 30 <= summary.outcome.seconds <= 60
    rates = [
        line["learning_rate"] for line in lines_of(tmp_path / "run/metrics.jsonl") if "learning_rate" in line
    ]
    assert rates[-1] < 0.3 * max(rates), "the cosine followed the clock"


def test_bf16_autocast_trains(numbers: Path, tmp_path: Path) -> None:
    summary = train(translation(numbers, precision="bf16"), tmp_path / "run", show_progress=False)
    assert summary.metrics["validation_loss"] < 2.5
    weights = load_run(tmp_path / "run").model.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_names_the_step(numbers: Path, tmp_path: Path) -> None:
    recipe = translation(numbers, max_learning_rate=1e30, warmup_steps=0, max_gradient_norm=0)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+: lower") as caught:
        train(recipe, tmp_path / "run", show_progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/run.json").exists()


def test_an_earlier_run_is_replaced_when_told_to_and_nothing_else_ever(numbers: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(translation(numbers, max_steps=20), out, show_progress=False)
    before, shorter = tree(out), translation(numbers, max_steps=10, average_checkpoints=1)
    with pytest.raises(
        UsageError, match=r"run is a run already: finished; give --restart to train anew in its place"
    ):
        train(shorter, out, show_progress=False)
    assert tree(out) == before, "its weights are there, and all else"
    (out / "notes.txt").write_text("what I learned")
    train(shorter, out, beginning=Beginning(restart=True), show_progress=False)
    assert load_run(out).step == 10
    assert len(list((out / "checkpoints").glob("*.safetensors"))) == 1
    assert {line["step"] for line in lines_of(out / "metrics.jsonl") if "loss" in line} == {10}
    assert (out / "notes.txt").read_text() == "what I learned"


def test_a_run_is_not_removed_for_one_whose_corpus_cannot_be_read(numbers: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(translation(numbers, max_steps=2), out, show_progress=False)
    before = tree(out)
    with pytest.raises(CorpusError, match="there is no folder"):
        train(translation(tmp_path / "nowhere"), out, beginning=Beginning(restart=True), show_progress=False)
    assert tree(out) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("to-mother.txt", "Dear mother", "it holds 'to-mother.txt' and no recipe.json"),
        ("recipe.json", '{"flour": "500 g"}', "its recipe.json is not that of a run"),
        ("recipe.json", "500 g of flour", "its recipe.json is not that of a run"),
        ("run/corpus/train.tsv", "one\t1", "its 'corpus' holds 'train.tsv' as well"),
        ("run/state/New York", "", "its 'state' holds 'New York' as well"),
        ("run/tensorboard/mine/x", "", "its 'tensorboard' holds 'mine' as well"),
        ("run/report.html", "<title>Annual report</title>", "its 'report.html': it is another page"),
        ("run/samples.jsonl/x", "", "its 'samples.jsonl' is a folder"),
    ],
)
def test_restart_removes_nothing_that_training_did_not_write(
    numbers: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    out = tmp_path / "out"
    path = out / name.removeprefix("run/")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    if name.startswith("run/"):
        (out / "recipe.json").write_text(translation(numbers).model_dump_json())
    before = tree(out)
    with pytest.raises(UsageError) as refused:
        train(translation(numbers), out, beginning=Beginning(restart=True), show_progress=False)
    assert f"is not a run, and nothing else is ever replaced: {message}" in str(refused.value)
    assert tree(out) == before


@pytest.mark.parametrize("out", ["first", "first/second", "."])
def test_a_run_that_is_started_from_is_not_written_over(numbers: Path, tmp_path: Path, out: str) -> None:
    train(translation(numbers, max_steps=2), tmp_path / "first", show_progress=False)
    before = tree(tmp_path)
    again = Beginning(init=tmp_path / "first", restart=True)
    with pytest.raises(UsageError, match=r"this command reads"):
        train(translation(numbers), tmp_path / out, beginning=again, show_progress=False)
    assert tree(tmp_path) == before


def test_a_link_to_a_folder_is_followed(numbers: Path, tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    (tmp_path / "run").symlink_to("big disk")
    train(translation(numbers, max_steps=2), tmp_path / "run", show_progress=False)
    assert load_run(tmp_path / "big disk").step == 2
    assert (tmp_path / "run").is_symlink()


def test_a_folder_that_cannot_be_written_fails_at_once(numbers: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(UsageError, match=r"taken/run cannot be made: .*taken is a file"):
        train(translation(numbers), tmp_path / "taken/run", show_progress=False)


def test_a_corpus_that_does_not_fit_the_model_is_refused(numbers: Path, tmp_path: Path) -> None:
    recipe = translation(numbers)
    narrow = recipe.model_copy(update={"model": recipe.model.model_copy(update={"max_source_tokens": 2})})
    with pytest.raises(CorpusError, match=r"every pair of its train split is longer .* max_source_tokens 2"):
        train(narrow, tmp_path / "run", show_progress=False)


def test_an_empty_corpus_is_refused_and_leaves_nothing(numbers: Path, tmp_path: Path) -> None:
    (numbers / "train.tsv").write_text("")
    before = tree(tmp_path)
    with pytest.raises(CorpusError, match="empty"):
        train(translation(numbers), tmp_path / "runs" / "run", show_progress=False)
    assert tree(tmp_path) == before

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.txt").touch()
    with pytest.raises(CorpusError, match="empty"):
        train(translation(numbers), tmp_path / "runs" / "run", show_progress=False)
    assert list(tree(tmp_path / "runs")) == ["notes.txt"]


def test_the_summary_says_what_happened(
    numbers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(translation(numbers), tmp_path / "run")
    said = capsys.readouterr().err
    for part in (
        "numbers: ",
        "parameters",
        "training.max_steps is reached",
        "tokens/s",
        "padding",
        "exact match",
    ):
        assert part in said
    assert str(tmp_path / "run/metrics.jsonl") in "".join(said.split())


@pytest.mark.parametrize(
    ("settings", "reads"),
    [([], False), (["corpus.synthetic_pairs=['-']"], True), (["corpus.synthetic_pairs=['x']"], False)],
)
def test_standard_input_is_found_among_all_files_of_a_corpus(settings: list[str], reads: bool) -> None:
    assert _reads_standard_input(load_recipe("multi30k", settings)) == reads
