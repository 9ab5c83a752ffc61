"""The report of a run: made of the folder alone, whole or not at all, and safe to open."""

import html.parser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dragoman.cli.main import main
from dragoman.common.errors import OperationError
from dragoman.model.errors import RunError
from dragoman.model.recipe import Recipe, load_recipe
from dragoman.model.run import RunRecord
from dragoman.model.training.history import read_history
from dragoman.model.training.report import _stories, write_report
from dragoman.model.training.reproduction import as_toml, builtin_command

VOID = {"meta", "br", "hr", "link", "img", "input"}
VALIDATION_LOSSES = {100: 3.0, 200: 1.5, 300: 1.75}
NASTY = "<script>alert('x')</script> & \"$x_1$\""


class Page(html.parser.HTMLParser):
    """Well-formed or not, its elements, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.marked: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open[-1:] == ["mark"]:
            self.marked.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def labels(self) -> dict[str, str]:
        """What each chart shows, in words, by its title."""
        labels = [str(attrs["aria-label"]) for tag, attrs in self.elements if tag == "svg"]
        return {label.partition(";")[0]: label for label in labels}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def validation(step: int) -> dict[str, Any]:
    figures = {"validation_loss": VALIDATION_LOSSES[step], "validation_sample_bleu": step / 10}
    entropies = {f"attention_entropy/{kind}_0": 1.25 for kind in ("encoder", "decoder", "cross")}
    return {"step": step, **figures, **entropies, "seconds": step / 10}


def training(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 400 / step,
        "tokens_per_second": 1000.0 + step,
        "learning_rate": 1e-3,
        "gradient_norm": 0.5,
        "seconds": step / 10,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of the recipe multi30k, somewhat changed, that was resumed once."""
    folder = tmp_path / "captions"
    folder.mkdir()
    recipe = load_recipe("multi30k", ["training.max_steps=300"]).with_data(tmp_path / "my data")
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    metrics = {"validation_loss": 1.4, "test_exact_match": 4.25, "test_bleu": 38.5, "test_chrf": 60.0}
    started = {"corpus": "29,000 pairs", "cleaning": NASTY}
    ended = {"steps": "300 (training.max_steps is reached)", "padding": "6.1 % of what was computed"}
    lines = [{"step": 0, "event": "started", "facts": started, "seconds": 0.0}]
    for step in (100, 200, 300):
        lines += [training(step), validation(step)]
        lines += [{"step": 200, "event": "resumed", "seconds": 20.0}] if step == 200 else []
    lines += [{"step": 300, "event": "ended", "facts": ended, "seconds": 31.0}]
    write_lines(folder / "metrics.jsonl", [*lines, {"step": 300, **metrics, "seconds": 33.0}])
    answers = {100: "the dog", 200: "the cat sat", 300: "the cat sat down"}
    samples = [
        {
            "step": step,
            "samples": [
                {"source": "die Katze", "reference": "the cat sat down", "hypothesis": answer},
                {"source": NASTY, "reference": NASTY, "hypothesis": f"<b>{step}</b>"},
            ],
        }
        for step, answer in answers.items()
    ]
    write_lines(folder / "samples.jsonl", samples)
    record = RunRecord(
        dimensions=recipe.dimensions(8000),
        step=300,
        metrics=metrics,
        commit="abc123",
        torch_version="2.13.0",
        weights_sha256="0" * 64,
    )
    (folder / "run.json").write_text(record.model_dump_json())
    return folder


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_needs_nothing_beside_it(folder: Path) -> None:
    path = write_report(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
    addresses = [
        value
        for _, attrs in page.elements
        for name, value in attrs.items()
        if name in {"src", "href", "xlink:href"} and value
    ]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    assert "@import" not in path.read_text(encoding="utf-8")
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses} <= set(ids)
    assert set(re.findall(r"url\(#(\w+)\)", path.read_text(encoding="utf-8"))) <= set(ids)


def test_every_curve_says_what_it_shows(folder: Path) -> None:
    labels = page_of(folder).labels()
    assert list(labels) == [
        "Loss, nats a token",
        "Validation BLEU, %",
        "Learning rate",
        "Gradient norm",
        "Throughput, tokens/s",
        "Attention entropy, encoder, nats",
        "Attention entropy, decoder, nats",
        "Attention entropy, decoder to source, nats",
    ]
    assert "training from 4 at step 100 to 1.333 at step 300" in labels["Loss, nats a token"]
    assert "clipped to 1" in labels["Gradient norm"]
    assert all("resumed at step 200" in label for label in labels.values())


def test_the_best_validation_is_marked(folder: Path) -> None:
    page = page_of(folder)
    assert "best checkpoint at step 200, 1.5" in page.labels()["Loss, nats a token"]
    assert "best checkpoint at step 200, 20" in page.labels()["Validation BLEU, %"]
    assert "best checkpoint, 1.5" in page.texts
    assert "step 200, by validation loss" in page.text


def test_the_final_weights_are_no_point_of_a_curve(folder: Path) -> None:
    """Their validation loss stands at the last step too, and is another model's."""
    assert read_history(folder).get("validation_loss").values == (3.0, 1.5, 1.75)
    assert (
        "validation from 3 at step 100 to 1.75 at step 300" in page_of(folder).labels()["Loss, nats a token"]
    )


def test_text_is_text(folder: Path) -> None:
    path = write_report(folder)
    page = Page(path.read_text(encoding="utf-8"))
    assert "<script" not in path.read_text(encoding="utf-8")
    assert page.texts.count(NASTY) == 3, "as a source, as a reference and as a fact"
    assert "<b>300</b>" in page.texts


def test_the_samples_show_how_a_translation_got_better(folder: Path) -> None:
    text = page_of(folder).text
    story = text[text.index("die Katze") : text.index("Sample 2")]
    assert story.index("step 100") < story.index("step 200") < story.index("step 300")
    assert story.count("as the reference") == 1
    assert page_of(folder).marked[0] == "dog", "the only word that the reference does not have"
    assert "cat" not in page_of(folder).marked


def test_a_sample_that_validation_holds_twice_is_shown_once(folder: Path) -> None:
    """As earlier releases wrote them; one input may have two references."""
    cat = {"source": "le chat", "reference": "the cat"}
    asked = [cat, {"source": "le chat", "reference": "a cat"}, cat]
    records = [
        {"step": step, "samples": [{**sample, "hypothesis": f"answer {step}"} for sample in asked]}
        for step in (100, 200)
    ]
    write_lines(folder / "samples.jsonl", records)
    [first, second] = _stories(read_history(folder))
    assert (first.reference, second.reference) == ("the cat", "a cat")
    assert [attempt.step for attempt in first.attempts] == [100, 200]
    assert [attempt.step for attempt in second.attempts] == [100, 200]


def test_figures_of_a_sample_are_not_those_of_the_split(folder: Path) -> None:
    """An earlier release gave both one name; there the curve is that of the sample."""
    records = [
        {"step": 5, "validation_loss": 2.0, "validation_sample_bits_per_byte": 2.5},
        {"step": 5, "validation_loss": 2.0, "validation_bits_per_byte": 2.75},
    ]
    write_lines(folder / "metrics.jsonl", records)
    history = read_history(folder)
    assert history.get("validation_sample_bits_per_byte").values == (2.5,)
    assert history.get("validation_bits_per_byte").values == (2.75,)


def test_of_many_validations_a_few_are_shown_the_last_among_them(folder: Path) -> None:
    sample = {"source": "a", "reference": "b", "hypothesis": "c"}
    steps = range(10, 1010, 10)
    write_lines(folder / "samples.jsonl", [{"step": step, "samples": [sample]} for step in steps])
    shown = re.findall(r"step ([\d,]+) c", page_of(folder).text)
    assert len(shown) == 5
    assert (shown[0], shown[-1]) == ("10", "1,000")


def test_the_summary_and_what_figures_were_measured_on(folder: Path) -> None:
    text = page_of(folder).text
    for part in (
        "steps 300 (training.max_steps is reached)",
        "time 33 s, validation included",
        "padding 6.1 % of what was computed",
        "corpus 29,000 pairs",
        "BLEU 38.50 % test split of multi30k, at most 1,000 pairs",
        "loss 1.4000 nats a token validation split of multi30k, at most 2,000 pairs",
        "PyTorch 2.13.0",
        "abc123",
    ):
        assert part in text
    assert re.search(r"parameters [\d,]{9,} ", text)


def test_the_command_trains_the_same(folder: Path) -> None:
    """It names what differs from the built-in recipe, and nothing else."""
    recipe = read_history(folder).recipe
    command = builtin_command(recipe, "captions")
    assert command is not None
    assert command in page_of(folder).texts
    words = shlex.split(command)
    data = str(folder.parent / "my data")
    assert words[:5] == ["dragoman", "train", "multi30k", "--out", "runs/captions"]
    assert words[5:] == ["--data", data, "--set", "training.max_steps=300"]
    assert load_recipe("multi30k", [words[-1]]).with_data(Path(data)) == recipe


def test_a_recipe_of_ones_own_is_shown_as_a_file_to_save(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe("multi30k", ['name="mine"', 'description="q\\"uote"']).with_data(tmp_path)
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    page = page_of(folder)
    assert "dragoman train mine.toml --out runs/captions" in page.texts
    [toml] = [text for text in page.texts if text.startswith('name = "mine"')]
    (tmp_path / "mine.toml").write_text(toml)
    assert load_recipe(str(tmp_path / "mine.toml")) == recipe


def test_a_recipe_that_only_shares_a_name_is_not_taken_for_the_built_in_one() -> None:
    values = load_recipe("multi30k").model_dump()
    values["corpus"] = {"kind": "parallel", "folder": "/x", "train": {"source": "a.de", "target": "a.en"}}
    recipe = Recipe.load(values, source="test")
    assert builtin_command(recipe, "x") is None
    assert 'train = { source = "a.de", target = "a.en" }' in as_toml(recipe)


def test_a_run_under_way_has_a_report_too(folder: Path) -> None:
    (folder / "run.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:4], '{"step": 210, "lo']))
    text = page_of(folder).text
    assert "The run is not finished." in text
    assert "steps 200, so far" in text
    assert "BLEU 38.50" not in text


def test_a_run_that_has_measured_nothing_says_so(folder: Path) -> None:
    for name in ("run.json", "metrics.jsonl", "samples.jsonl"):
        (folder / name).unlink()
    page = page_of(folder)
    assert "Nothing is measured yet." in page.text
    assert "svg" not in {tag for tag, _ in page.elements}


def test_an_end_that_training_went_on_after_is_forgotten(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(training(310)) + "\n")
    facts = read_history(folder).facts
    assert "padding" not in facts
    assert facts["corpus"] == "29,000 pairs"


def test_a_language_model_is_measured_in_bits(folder: Path) -> None:
    (folder / "run.json").unlink()
    (folder / "recipe.json").write_text(load_recipe("stdlib").model_dump_json())
    write_lines(
        folder / "metrics.jsonl", [{"step": 5, "validation_loss": 2.0, "validation_bits_per_byte": 2.5}]
    )
    sample = {"source": "def", "reference": " main():", "hypothesis": " x():"}
    write_lines(folder / "samples.jsonl", [{"step": 5, "samples": [sample]}])
    page = page_of(folder)
    assert "bits per byte from 2.5 at step 5" in page.labels()["Validation, bits per byte"]
    assert "prompt def" in page.text
    assert page.marked == [], "to go on otherwise is not wrong"


def test_the_folder_alone_gives_the_same_page_again(folder: Path) -> None:
    once = write_report(folder).read_bytes()
    (folder / "report.html").unlink()
    assert write_report(folder).read_bytes() == once


def test_the_page_is_written_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(folder)
    before = (folder / "report.html").read_bytes()
    (folder / "samples.jsonl").unlink()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OperationError, match=r"cannot write .*report\.html: No space left"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before
    assert not list(folder.glob(".report*"))


def test_what_is_no_run_or_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere is not a training run: it holds no recipe\.json"):
        write_report(tmp_path / "nowhere")
    (folder / "samples.jsonl").write_text('{"step": 1, "samples": [{"sauce": "x"}]}\n')
    with pytest.raises(RunError, match=r"samples\.jsonl holds a sample that is none"):
        write_report(folder)


def test_the_command_writes_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").is_file()
    assert main(["report", str(folder / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
