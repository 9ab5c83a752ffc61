"""The load generator's bookkeeping; `tests/integration/test_client_load.py` has it send."""

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dragoman.cli import bench
from dragoman.client.load.arrivals import poisson_arrivals
from dragoman.client.load.generator import LoadPlan
from dragoman.client.load.inputs import lines_of, read_inputs, sample_inputs
from dragoman.client.load.report import Distribution, LoadReport, Outcome, Recorder
from dragoman.client.results import ModelInfo, Task
from dragoman.common.errors import UsageError


def test_percentiles_are_numpys() -> None:
    durations = np.random.default_rng(1).exponential(size=1003).tolist()
    distribution = Distribution.of(durations)
    assert distribution is not None
    assert [distribution.p50_s, distribution.p95_s, distribution.p99_s] == pytest.approx(
        np.percentile(durations, [50, 95, 99]).tolist()
    )
    assert distribution.mean_s == pytest.approx(np.mean(durations))
    assert distribution.max_s == max(durations)


def test_few_durations_have_a_distribution_too() -> None:
    assert Distribution.of([]) is None
    assert Distribution.of([2.0]) == Distribution(2.0, 2.0, 2.0, 2.0, 2.0)


def test_arrivals_are_a_poisson_process() -> None:
    arrivals = list(itertools.islice(poisson_arrivals(50.0, seed=3), 20_000))
    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *arrivals])]
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.03)
    # Exponential gaps: standard deviation equal to the mean; counts a second: variance equal to the mean.
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)
    counts = np.histogram(arrivals, bins=int(arrivals[-1]), range=(0, int(arrivals[-1])))[0]
    assert counts.var() == pytest.approx(50, rel=0.2)
    assert arrivals[:3] == list(itertools.islice(poisson_arrivals(50.0, seed=3), 3))


def test_latency_counts_from_the_intended_time_and_only_within_the_window() -> None:
    recorder = Recorder(10.0, 20.0)
    recorder.add(Outcome(9.0, 9.0, None, 9.5, "OK", 5, 5))  # warm-up
    recorder.add(Outcome(9.9, 9.9, None, 10.5, "OK", 1, 2))  # sent in the warm-up, answered in the window
    recorder.add(Outcome(11.0, 12.0, 12.5, 13.0, "OK", 3, 4))  # left a second late
    recorder.add(Outcome(19.0, 19.0, 22.0, 23.0, "OK", 7, 7))  # answered after the window
    recorder.add(Outcome(15.0, 15.0, None, 15.1, "RESOURCE_EXHAUSTED", message="full"))
    recorder.add(Outcome(16.0, 21.0, None, 21.1, "RESOURCE_EXHAUSTED", message="full again"))  # left late
    recorder.add(Outcome(20.0, 20.0, None, 20.1, "UNAVAILABLE", message="gone"))  # beyond
    report = recorder.report(generator_cpu_share=0.5)
    assert (report.num_requests, report.errors, report.num_errors) == (4, {"RESOURCE_EXHAUSTED": 2}, 2)
    assert report.error_messages == {"RESOURCE_EXHAUSTED": "full"}
    assert report.sent_per_s == pytest.approx(0.3)
    assert report.requests_per_s == pytest.approx(0.2)
    assert (report.input_tokens_per_s, report.output_tokens_per_s) == pytest.approx((0.4, 0.6))
    assert report.latency is not None
    assert report.latency.max_s == 4.0
    assert report.latency.mean_s == 3.0
    assert report.time_to_first_token is not None
    assert report.time_to_first_token.mean_s == pytest.approx(2.25)
    assert report.send_lag is not None
    assert report.send_lag.max_s == 5.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either a closed loop"),
        ({"concurrency": 1, "rate": 1.0}, "either a closed loop"),
        ({"concurrency": 0}, "concurrency = 0: must be at least 1"),
        ({"rate": float("inf")}, "rate = inf: must be above 0"),
        ({"rate": float("nan")}, "rate = nan: must be above 0"),
        ({"concurrency": 1, "duration_s": 0.0}, "duration = 0 s"),
        ({"concurrency": 1, "duration_s": float("inf")}, "duration = inf s"),
        ({"concurrency": 1, "duration_s": float("nan")}, "duration = nan s"),
        ({"concurrency": 1, "warm_up_s": float("nan")}, "warm-up = nan s"),
        ({"concurrency": 1, "inputs": ()}, "no inputs"),
    ],
)
def test_a_load_that_is_none_is_refused(values: dict[str, Any], message: str) -> None:
    plan: dict[str, Any] = {"target": "host:1", "model": "m", "inputs": ("x",), "options": {}, **values}
    with pytest.raises(UsageError, match=message):
        LoadPlan(**plan)


def model_of(recipe: object) -> ModelInfo:
    return ModelInfo("mine", "1", Task.TRANSLATION, "fp32", "cpu", 1, 1, 1, {"recipe": recipe}, ())


def test_built_in_inputs_fit_the_recipe() -> None:
    assert "3. Oktober 1990" in sample_inputs(model_of({"name": "dates", "seed": 1}))
    with pytest.raises(UsageError, match="no built-in inputs for model 'mine'; give some with --inputs"):
        sample_inputs(model_of({"name": "my-own"}))


def test_inputs_are_lines_or_a_bundles_golden_examples(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("eins\n\nzwei\n", encoding="utf-8")
    assert read_inputs(lines) == ("eins", "zwei")
    manifest = {"golden_examples": [{"text": "drei", "token_ids": [5]}]}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    assert read_inputs(tmp_path) == ("drei",)


@pytest.mark.parametrize(
    ("rate", "late_s", "cpu_share", "told"),
    [
        (500.0, 0.01, 0.5, []),
        (
            500.0,
            1.0,
            0.5,
            ["fell behind: it sent 300 of 500 requests/s, one of a hundred more than 1 s late"],
        ),
        (None, 1.0, 0.95, ["used 95% of a core"]),
        (1e6, 2.5, 0.99, ["it sent 300 of 1,000,000 requests/s, one of a hundred more than 2.5", "used 99%"]),
    ],
)
def test_a_generator_that_was_the_limit_says_so(
    rate: float | None, late_s: float, cpu_share: float, told: list[str]
) -> None:
    load = {"rate": rate} if rate else {"concurrency": 4}
    plan = LoadPlan(target="host:1", model="m", inputs=("x",), options={}, **load)
    lag = Distribution(late_s, late_s, late_s, late_s, late_s)
    report = LoadReport(10.0, 5, {}, {}, 300.0, 1.0, 1.0, 1.0, None, None, lag, cpu_share)
    remarks = bench.remarks(plan, report)
    assert len(remarks) == len(told)
    assert all(expected in remark for expected, remark in zip(told, remarks, strict=True))


def test_a_line_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"\xef\xbb\xbfeins\nzw\xffei\n")
    with pytest.raises(UsageError, match=r"lines, line 2: not UTF-8: b'zw\\xffei'$"):
        read_inputs(tmp_path / "lines")
    assert lines_of(b"\xef\xbb\xbfeins\n\n", "here") == ("eins",)
    with pytest.raises(UsageError, match=r"^here holds no inputs: it is empty$"):
        lines_of(b"\n", "here")


@pytest.mark.parametrize("content", ["{}", "[]", "nonsense", '{"golden_examples": []}'])
def test_a_folder_without_examples_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(UsageError, match="holds no inputs"):
        read_inputs(tmp_path)
