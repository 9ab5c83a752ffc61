"""The report of a run: one HTML file with all a person wants to see, made of the run folder's records alone."""

import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import torch

from dragoman.common.files import Destination
from dragoman.model.run import REPORT_FILE, TENSORBOARD_FOLDER
from dragoman.model.run_folder import report_flaw
from dragoman.model.training.curves import draw_charts
from dragoman.model.training.history import History, read_history
from dragoman.model.training.records import Sample
from dragoman.model.training.reproduction import as_toml, builtin_command, flat_settings
from dragoman.model.training.summary import WARNING, readable_figure
from dragoman.model.transformer import build_model

__all__ = ["write_report"]

_MAX_SAMPLE_STEPS = 5
_MEASURES = {
    "exact_match": "exact match",
    "bleu": "BLEU",
    "chrf": "chrF",
    "bits_per_byte": "bits per byte",
    "loss": "loss",
}


@dataclasses.dataclass(frozen=True)
class _Figure:
    """A final figure."""

    name: str
    value: str
    unit: str
    data: str  # what it was measured on


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """What the model made of a sample at one step: parts of text, and whether they differ from the reference."""

    step: int
    parts: list[tuple[str, bool]]
    is_right: bool


@dataclasses.dataclass(frozen=True)
class _Story:
    """One input and what the model made of it over time."""

    source: str
    reference: str
    attempts: list[_Attempt]


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html, whole or not at all, from what the run folder holds; returns its path.

    It can be made again at any time, of a training under way too.

    Raises:
        RunError: the folder is no run's, or a file in it is damaged.
        UsageError: a report.html is there that is none of these.
        OperationError: the folder cannot be written.
    """
    history = read_history(folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dragoman.model", "training"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    name = folder.resolve().name
    page = environment.get_template("report.html.j2").render(
        recipe=history.recipe,
        record=history.record,
        name=name,
        figures=_final_figures(history),
        facts={label: text for label, text in _facts(history).items() if label != WARNING},
        warning=history.facts.get(WARNING),
        best_step=history.best_step,
        resumed_at=history.resumed_at,
        charts=draw_charts(history),
        stories=_stories(history),
        command=builtin_command(history.recipe, name),
        toml=as_toml(history.recipe),
        settings=_settings(history),
        tensorboard=TENSORBOARD_FOLDER,
    )
    path = folder / REPORT_FILE
    with Destination(
        path=path, kind="a report", is_folder=False, flaw=report_flaw, replaces=True
    ).file() as file:
        file.write(page.encode())
    return path


def _final_figures(history: History) -> list[_Figure]:
    if history.record is None:
        return []
    training, corpus = history.recipe.training, history.recipe.corpus.kind
    examples = "pairs" if history.recipe.task == "translation" else "documents"
    figures = []
    for name, value in history.record.metrics.items():
        split, _, measure = name.partition("_")
        limit = f"{training.num_quality_examples:,} {examples}"
        if measure == "loss":
            rows = "pairs" if history.recipe.task == "translation" else "windows"
            limit = f"{training.max_validation_examples:,} {rows}"
        number, _, unit = readable_figure(name, value).partition(" ")
        data = f"{split} split of {corpus}, at most {limit}"
        figures.append(_Figure(_MEASURES.get(measure, measure), number, unit, data))
    return figures


def _facts(history: History) -> dict[str, str]:
    """What training told of itself; what it did not get to tell, as far as its figures show it."""
    facts = {}
    if history.last_step:
        facts["steps"] = f"{history.last_step:,}" + ("" if history.record else ", so far")
    if history.seconds is not None:
        facts["time"] = f"{history.seconds:,.0f} s, validation included"
    if speeds := history.get("tokens_per_second").values:
        facts["throughput"] = f"{sorted(speeds)[len(speeds) // 2]:,.0f} tokens/s, the median"
    if history.record:
        with torch.device("meta"):  # shapes without memory
            model = build_model(history.record.dimensions)
        facts["parameters"] = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    return facts | history.facts


def _stories(history: History) -> list[_Story]:
    """The inputs of the last validation, with the model's answers at a few steps from the first to the last."""
    steps = sorted(history.samples)
    if not steps:
        return []
    count = min(_MAX_SAMPLE_STEPS, len(steps))
    shown = [steps[round(number * (len(steps) - 1) / max(1, count - 1))] for number in range(count)]
    shown[-1] = steps[-1]
    # Validation may hold an example several times, and one input with several references.
    last = dict.fromkeys((sample.source, sample.reference) for sample in history.samples[steps[-1]])
    return [_Story(*asked, _attempts(history, shown, asked)) for asked in last]


def _attempts(history: History, steps: Sequence[int], asked: tuple[str, str]) -> list[_Attempt]:
    """The answer to one input, with its reference, at each of `steps` that has one."""
    compares = history.recipe.task == "translation"
    attempts = []
    for step in steps:
        samples = history.samples[step]
        answer = next((sample for sample in samples if (sample.source, sample.reference) == asked), None)
        if answer:
            attempts.append(_attempt(step, answer, compares))
    return attempts


def _attempt(step: int, sample: Sample, compares: bool) -> _Attempt:
    """Word by word against the reference; what goes on otherwise than a text did is not wrong for that."""
    is_right = sample.hypothesis == sample.reference
    if not compares or is_right:
        return _Attempt(step, [(sample.hypothesis, False)], is_right)
    said, expected = (re.findall(r"\S+|\s+", text) for text in (sample.hypothesis, sample.reference))
    matcher = difflib.SequenceMatcher(None, expected, said, autojunk=False)
    parts = [
        ("".join(said[start:end]), tag != "equal")
        for tag, _, _, start, end in matcher.get_opcodes()
        if end > start
    ]
    return _Attempt(step, parts, is_right)


def _settings(history: History) -> dict[str, list[tuple[str, str]]]:
    """The recipe's settings by section."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for key, value in flat_settings(history.recipe.model_dump(mode="json")):
        section, dot, rest = key.partition(".")
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
        sections.setdefault(section if dot else "recipe", []).append((rest if dot else key, text))
    return sections
