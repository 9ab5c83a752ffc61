"""The end of a training, in figures."""

import io
import math
from pathlib import Path

from rich.console import Console

from dragoman.model.training.loop import Outcome
from dragoman.model.training.summary import TrainingSummary, outcome_facts, print_summary

SUMMARY = TrainingSummary(
    path=Path("runs/captions"),
    num_parameters=1234,
    outcome=Outcome(
        num_steps=6000,
        seconds=50.0,
        num_tokens=1_000_000,
        padding_share=0.0612,
        stopped_by="patience",
        end_s=math.inf,
    ),
    seconds=52.25,
    num_too_long=7,
    metrics={"validation_loss": 1.25, "test_bleu": 38.5},
)


def test_the_table_says_what_happened_and_where_to_look() -> None:
    file = io.StringIO()
    print_summary(SUMMARY, Console(file=file, width=100))
    rows = [line.strip() for line in file.getvalue().splitlines()]
    shown = {row.partition("  ")[0]: row.partition("  ")[2].strip() for row in rows if row}
    assert shown["validation loss"] == "1.2500 nats a token"
    assert shown["test bleu"] == "38.50 %"
    assert shown["report"] == "runs/captions/report.html"
    assert shown["curves"] == "tensorboard --logdir runs/captions/tensorboard"
    assert shown.items() >= outcome_facts(SUMMARY).items()


def test_the_facts_are_of_the_outcome() -> None:
    assert outcome_facts(SUMMARY) == {
        "steps": "6,000 (validation no longer improves)",
        "time": "52.2 s, validation and final quality included",
        "throughput": "20,000 tokens/s",
        "padding": "6.1 % of what was computed",
        "left out": "7 pairs over the model's limits",
    }
