"""The whole path in one command, with a model too small and too short trained to be good."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
        [sys.executable, "-m", "client.cli.main", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(part) for part in sys.path)},  # noqa: PTH100
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder a demonstration was made in, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = dragoman(folder, "demo", *(word for setting in SMALL for word in ("--set", setting)))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return folder, done.stdout


def test_a_demonstration_shows_each_step_and_ends_by_itself(demonstrated: tuple[Path, str]) -> None:
    _, shown = demonstrated
    headings = re.findall(r"^\d\. .*$|^Done in .*$", shown, flags=re.MULTILINE)
    assert [heading[:4] for heading in headings] == ["1. T", "2. E", "3. S", "4. S", "Done"]
    assert "same answer as PyTorch: 40 of 40" in shown
    assert re.search(r"le 14 juillet 1989 .* \d+\.\d ms", shown)
    assert "of 40 dates that training never saw are exactly right (over gRPC" in shown
    # A call that connects, the questions, and 40 test dates in two calls.
    assert 'dragoman_requests_total{code="OK", method="Translate", model="dates"} 11\n' in shown
    assert "left with exit code 0" in shown


def test_a_demonstration_leaves_a_run_and_a_bundle_that_agree(demonstrated: tuple[Path, str]) -> None:
    folder, _ = demonstrated
    done = dragoman(folder, "verify", "models/dates/1", "--run", "runs/dates")
    assert (done.returncode, done.stderr) == (0, "")
    assert "files: unchanged" in done.stdout
    assert "same answer as PyTorch: 40 of 40" in done.stdout
