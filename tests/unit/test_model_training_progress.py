"""What training tells: the bar, metrics.jsonl, samples.jsonl, TensorBoard, and how a resumed run goes on."""

import io
import itertools
import json
import queue
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from dragoman.common.errors import OperationError
from dragoman.model.errors import RunError
from dragoman.model.recipe import TrainingSettings
from dragoman.model.training.limits import Limits
from dragoman.model.training.progress import Reporter
from dragoman.model.training.records import Sample

SAMPLE = Sample("le chat", "the cat", "the <dog>")


class Terminal:
    """A console that takes what is drawn."""

    def __init__(self, width: int = 160) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=True, width=width, color_system=None)

    def drawn(self) -> str:
        return self.file.getvalue()


def quiet() -> Console:
    return Console(file=io.StringIO())


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def report(folder: Path, steps: range, resume_step: int | None = None) -> None:
    with Reporter(folder, quiet(), resume_step=resume_step) as reporter:
        for step in steps:
            reporter.show(step / 100, 10.0 * step, 1.0, 2.0)
            reporter.record(
                step, {"loss": 1.0 / step, "attention_entropy/cross_0": 0.5, "gradient_norm": 2.0}
            )
            reporter.samples(step, [SAMPLE])


def test_each_line_is_in_its_file_at_once(tmp_path: Path) -> None:
    with Reporter(tmp_path, quiet()) as reporter:
        reporter.event(0, "started", {"corpus": "3 pairs"})
        reporter.show(0.1, 12.0, 2.5, 99.0)
        reporter.record(10, {"loss": 2.5})
        reporter.samples(10, [SAMPLE, Sample("é", "", "")])
        started, line = lines_of(tmp_path / "metrics.jsonl")
        assert started == {"step": 0, "event": "started", "facts": {"corpus": "3 pairs"}, "seconds": 0.0}
        assert line["seconds"] == pytest.approx(12.0, abs=1.0)
        assert {**line, "seconds": 0} == {"step": 10, "loss": 2.5, "seconds": 0}
        [samples] = lines_of(tmp_path / "samples.jsonl")
    assert samples["step"] == 10
    assert [Sample(**sample) for sample in samples["samples"]] == [SAMPLE, Sample("é", "", "")]


def test_tensorboard_has_the_figures_and_the_samples(tmp_path: Path) -> None:
    report(tmp_path, range(1, 3))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "attention_entropy/cross_0", "gradient_norm"} == set(board.Tags()["scalars"])
    [name] = board.Tags()["tensors"]
    assert name == "samples/0/text_summary"
    assert b"the <dog>" in board.Tensors(name)[0].tensor_proto.string_val[0]


def test_a_resumed_run_goes_on_from_its_step(tmp_path: Path) -> None:
    report(tmp_path, range(1, 7))
    begin_s = int(time.time())
    while (
        int(time.time()) == begin_s
    ):  # TensorBoard names its files by the second, and reads them by their names
        time.sleep(0.01)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # torn by a kill
    report(tmp_path, range(5, 7), resume_step=4)
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6]
    assert {**lines[4], "seconds": 0} == {"step": 4, "event": "resumed", "seconds": 0}
    assert lines[4]["seconds"] == pytest.approx(40.0, abs=1.0), "the clock goes on"
    assert [line["step"] for line in lines_of(tmp_path / "samples.jsonl")] == [1, 2, 3, 4, 5, 6]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_is_not_resumed_starts_anew(tmp_path: Path) -> None:
    report(tmp_path, range(1, 4))
    report(tmp_path, range(1, 2))
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [1]
    assert [line["step"] for line in lines_of(tmp_path / "samples.jsonl")] == [1]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with (
        pytest.raises(RunError, match=r"metrics\.jsonl, line 2, is no JSON"),
        Reporter(tmp_path, quiet(), resume_step=3),
    ):
        pass
    assert (tmp_path / "metrics.jsonl").read_text().startswith('{"step": 1}\nnonsense'), "nothing is lost"


def test_a_silent_reporter_writes_and_shows_nothing(tmp_path: Path) -> None:
    terminal = Terminal()
    with Reporter(tmp_path, terminal.console, silent=True) as reporter:
        reporter.say("hello")
        reporter.phase("training")
        reporter.show(0.5, 1.0, 2.0, 3.0)
        reporter.record(1, {"loss": 2.0})
        reporter.samples(1, [SAMPLE])
        reporter.event(1, "ended", {})
    assert terminal.drawn() == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(OperationError, match=r"cannot write .*metrics\.jsonl"),
        Reporter(tmp_path / "missing", quiet()),
    ):
        pass


def test_the_bar_says_how_far_and_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    terminal = Terminal()
    terminal.console.get_time = lambda: now_s
    with Reporter(tmp_path, terminal.console, max_steps=6000) as reporter:
        reporter._bar.get_time = lambda: now_s
        reporter.phase("training")
        for step in (600, 1200, 1500):  # 100 s for 600 steps: 750 s for the 4,500 that are left
            now_s = 1000.0 + step / 6
            reporter.show(step / 6000, step / 6, 2.3456, 12345.6)
            reporter.record(step, {"loss": 2.3456})
        reporter.record(1500, {"validation_loss": 1.5, "validation_sample_bleu": 31.234})
        reporter._bar.refresh()
        drawn = terminal.drawn()
    for part in (
        "training",
        "25%",
        "step 1,500 of 6,000",
        "loss 2.3456",
        "BLEU 31.23",
        "12,346 tokens/s",
        "0:12:30 left",
    ):
        assert part in drawn


def test_time_left_is_that_of_the_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of minutes progress is time, however fast the steps are; resumed, the past does not blur it."""
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    limits = Limits(TrainingSettings(max_minutes=10), elapsed_s=300.0)
    terminal = Terminal()
    with Reporter(tmp_path, terminal.console) as reporter:
        reporter._bar.get_time = lambda: now_s
        for step, seconds in ((1, 1.0), (2, 50.0), (30, 60.0)):
            now_s = 1000.0 + seconds
            reporter.show(limits.completion(step), limits.elapsed_s, 2.0, 1.0)
        reporter._bar.refresh()
    assert limits.elapsed_s == 360.0
    assert "0:04:0" in terminal.drawn()


def test_where_no_bar_is_drawn_it_is_said_where_training_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dragoman.model.training.progress._MAX_SILENCE_S", 0.01)
    written = Lines()
    console = Console(file=written, width=160)
    with Reporter(tmp_path, console, max_steps=6000) as reporter:
        assert re.fullmatch(r"starting, for \d:\d\d:\d\d so far", written.next())
        reporter.phase("encoding the corpus")
        assert re.fullmatch(r"encoding the corpus, for \d:\d\d:\d\d so far", written.next("encoding"))
        reporter.phase("training")
        reporter.record(1500, {"loss": 2.3456})
        line = ""
        for share in itertools.count(1):  # until there is a speed to estimate by
            reporter.show(min(0.5, share / 1000), 10.0, 2.3456, 12345.6)
            if (line := written.next("training")).endswith(" left"):
                break
        assert line.startswith("training; step 1,500 of 6,000; loss 2.3456; 12,346 tokens/s; ")
    assert not reporter._heart.is_alive()


def test_a_bar_needs_no_lines_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragoman.model.training.progress._MAX_SILENCE_S", 0.0)
    with Reporter(tmp_path, Terminal().console) as reporter:
        assert not reporter._heart.is_alive()
    with Reporter(tmp_path, quiet(), silent=True) as reporter:
        assert not reporter._heart.is_alive()


class Lines(io.StringIO):
    """A file whose lines can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str] = queue.Queue()

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line:
                self._lines.put(line)
        return len(text)

    def next(self, start: str = "") -> str:
        """The next line that starts so."""
        while not (line := self._lines.get(timeout=10)).startswith(start):
            pass
        return line


def test_a_narrow_terminal_still_shows_the_time_left(tmp_path: Path) -> None:
    terminal = Terminal(width=80)
    with Reporter(tmp_path, terminal.console, max_steps=6000) as reporter:
        reporter.phase("validating")
        reporter.show(0.5, 10.0, 2.3456, 12345.6)
        reporter.record(1500, {"validation_sample_bleu": 31.234})
        reporter._bar.refresh()
        last = terminal.drawn().splitlines()[-1]
    assert "left  step 1,500 of 6,000" in last
