"""The whole path in one command, with a model too small and too short trained to be good."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.trees import Tree, tree

SMALL = (
    "corpus.num_train=300",
    "corpus.num_validation=20",
    "corpus.num_test=40",
    "model.width=32",
    "model.num_heads=2",
    "model.feed_forward_width=32",
    "model.num_encoder_layers=1",
    "model.num_decoder_layers=1",
    "training.max_steps=3",
    "training.evaluation_interval_steps=3",
    "training.num_quality_examples=10",
)


def dragoman(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dragoman", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(part) for part in sys.path)},  # noqa: PTH100
        timeout=240,
        check=False,
    )


@dataclass(frozen=True)
class Demonstrated:
    """The folder that a demonstration was made in, what it printed, and what was there before it."""

    folder: Path
    shown: str
    before: Tree


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A folder in which a demonstration got Ctrl-C while it trained, its exit code and its standard error."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "dragoman", "demo", "--set", "training.max_steps=1000000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(part) for part in sys.path)}  # noqa: PTH100
    settings = ["--set", "corpus.num_train=2000", "--set", "training.state_interval_s=0"]
    with subprocess.Popen(
        [*command, *settings],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env=environment,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "to learn from" in line:
                break
        metrics = folder / "runs/dates/metrics.jsonl"
        while '"loss"' not in metrics.read_text():  # the first ten steps
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    return folder, process.returncode, errors


@pytest.fixture(scope="module")
def demonstrated(broken_off: tuple[Path, int, str]) -> Demonstrated:
    folder, _, _ = broken_off
    (folder / "models/dates/1").mkdir(parents=True)
    (folder / "models/dates/1/thesis").write_text("years of work")
    before = tree(folder)
    done = dragoman(folder, "demo", *(word for setting in SMALL for word in ("--set", setting)))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return Demonstrated(folder, done.stdout, before)


def test_ctrl_c_while_it_trains_is_exit_code_130(broken_off: tuple[Path, int, str]) -> None:
    folder, code, errors = broken_off
    assert code == 130, errors
    assert "Traceback" not in errors
    assert list((folder / "runs/dates/state").iterdir())


def test_a_demonstration_shows_each_step_and_ends_by_itself(demonstrated: Demonstrated) -> None:
    shown = demonstrated.shown
    headings = re.findall(r"^\d\. .*$|^Done in .*$", shown, flags=re.MULTILINE)
    assert [heading[:4] for heading in headings] == ["1. T", "2. E", "3. S", "4. S", "Done"]
    assert "same answer as PyTorch: 40 of 40" in shown
    assert re.search(r"le 14 juillet 1989 .* \d+\.\d ms", shown)
    assert "of 40 dates that training never saw are exactly right (over gRPC" in shown
    # A call that connects, the questions, and 40 test dates in two calls.
    assert 'dragoman_requests_total{code="OK", method="Translate", model="dates"} 11\n' in shown
    assert "left with exit code 0" in shown


def test_a_demonstration_leaves_a_run_and_a_bundle_that_agree(demonstrated: Demonstrated) -> None:
    done = dragoman(demonstrated.folder, "verify", "models/dates/2", "--run", "runs/dates-2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "files: unchanged" in done.stdout
    assert "same answer as PyTorch: 40 of 40" in done.stdout


def test_after_one_that_was_broken_off_nothing_that_is_there_is_in_the_way(
    demonstrated: Demonstrated,
) -> None:
    folder = demonstrated.folder
    assert tree(folder).items() >= demonstrated.before.items(), "what was there is as it was"
    assert (folder / "runs/dates-2/run.json").is_file()
    assert (folder / "models/dates/2/bundle.json").is_file()
