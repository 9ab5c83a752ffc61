"""The service benchmark's verdicts: what holds a rate, who leaves the race, whose turn it is."""

import json
import math
from pathlib import Path

import pytest
from benchmarks import service as benchmark
from benchmarks.serving import services
from benchmarks.serving.load import Load, Service
from benchmarks.serving.served_share import ServedShare
from benchmarks.serving.service_report import Race, limit_rows, plot, share_rows, summary_rows
from rich.console import Console

from dragoman.v1 import translation_pb2


def race(name: str = "a", unloaded_s: float = 0.01) -> Race:
    return Race(Service(name, "", "", [b"x"]), unloaded_s, 1.0)


def load(rate: float, latency_s: float, num_slow: int = 0, slow_s: float = 1.0) -> Load:
    return Load(rate, [latency_s] * (100 - num_slow) + [slow_s] * num_slow, 10.0)


def test_a_percentile_is_the_latency_that_so_many_did_not_exceed() -> None:
    one = Load(10.0, [0.004, 0.001, 0.003, 0.002], 2.0)
    assert [one.percentile(share) for share in (0.25, 0.5, 0.51, 0.99)] == [0.001, 0.002, 0.003, 0.004]
    failing = Load(10.0, [0.001, math.inf, 0.001, 0.001], 1.5)
    assert (failing.num_failed, failing.throughput, failing.percentile(0.99)) == (1, 2.0, math.inf)


def test_a_rate_is_held_by_the_median_round_and_without_failures() -> None:
    one = race()
    one.loads[10.0] = [load(10.0, 0.02, num_slow=1), load(10.0, 0.02), load(10.0, 0.02, num_slow=9)]
    assert one.percentile(10.0, 0.99) == 0.02
    assert one.holds(10.0)
    one.loads[20.0] = [load(20.0, 0.051)] * 3  # over 5 times 0.01
    assert not one.holds(20.0)
    one.loads[30.0] = [load(30.0, 0.01), load(30.0, 0.01), load(30.0, 0.01, num_slow=1, slow_s=math.inf)]
    assert not one.holds(30.0)
    assert one.highest_rate() == 10.0  # whatever comes after a rate that was not held
    assert not one.is_over


def test_a_service_leaves_when_two_rates_were_more_than_it_can_answer() -> None:
    one = race()
    one.loads = {10.0: [load(10.0, 0.2)], 20.0: [load(20.0, 0.3)]}
    assert not one.is_over
    one.loads[40.0] = [load(40.0, 0.5)]
    assert one.is_over


def test_services_are_compared_at_the_same_p99() -> None:
    ours, theirs = race("ours"), race("theirs")
    ours.loads = {10.0: [load(10.0, 0.02)], 20.0: [load(20.0, 0.03)], 40.0: [load(40.0, 0.09)]}
    theirs.loads = {10.0: [load(10.0, 0.03)], 20.0: [load(20.0, 0.04)], 40.0: [load(40.0, 0.3)]}
    assert list(limit_rows([ours, theirs])) == [
        ["25", "10", "none", "–"],
        ["50", "20", "20", "1.00"],
        ["100", "40", "20", "2.00"],
    ]


def test_a_slow_service_has_a_high_bar_and_is_shown_under_the_lowest_too() -> None:
    fast, slow = race("fast", 0.01), race("slow", 0.1)
    for one in (fast, slow):
        one.loads = {10.0: [load(10.0, 0.04)], 20.0: [load(20.0, 0.3)]}
    rows = {row[0]: row for row in summary_rows([fast, slow])}
    assert (rows["fast"][3], rows["fast"][5]) == ("10", "10")
    assert (rows["slow"][3], rows["slow"][5]) == ("20", "10")


def test_nothing_held_is_no_rate() -> None:
    one = race()
    one.loads[10.0] = [load(10.0, 1.0)]
    assert one.highest_rate() is None
    assert not one.is_over
    assert next(iter(summary_rows([one])))[3:5] == ["none", "–"]


def test_services_take_turns_until_they_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[tuple[str, float]] = []
    limits = {"fast": 100.0, "slow": 10.0}

    def open_loop(service: Service, rate: float, duration_s: float, seed: int) -> Load:
        turns.append((service.name, rate))
        return load(rate, 0.01 if rate <= limits[service.name] else 1.0)

    monkeypatch.setattr(benchmark, "open_loop", open_loop)
    monkeypatch.setattr(benchmark, "unloaded_latency", lambda service, num_requests: 0.01)
    races = [race("fast"), race("slow")]
    effort = benchmark.Effort(
        [10.0, 20.0, 40.0, 80.0], rounds=2, duration_s=1.0, num_held_out=1, num_answers=1
    )
    benchmark.run_race(races, effort, seed=1, console=Console(quiet=True))
    warm_up = [("fast", 10.0), ("slow", 10.0)]
    assert turns[:6] == warm_up + [("fast", 10.0), ("slow", 10.0)] * 2
    assert turns[-4:] == [("fast", 40.0), ("slow", 40.0), ("fast", 80.0), ("fast", 80.0)]
    assert [one.highest_rate() for one in races] == [80.0, 10.0]


def test_a_share_is_the_median_of_the_rounds_ratios() -> None:
    share = ServedShare("4 callers", served=[90.0, 50.0, 80.0], in_process=[100.0, 100.0, 400.0])
    assert share.share == 0.5
    assert list(share_rows([share])) == [["4 callers", "80", "100", "50%"]]


def test_messages_of_many_texts_leave_out_what_is_left_over() -> None:
    messages = services.dragoman_requests("spell", ["a", "b", "c"], 2)
    [request] = map(translation_pb2.TranslateRequest.FromString, messages)
    assert (request.model, list(request.inputs)) == ("spell", ["a", "b"])


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    one = race()
    one.loads = {10.0: [load(10.0, 0.01)], 20.0: [load(20.0, 0.02, num_slow=9, slow_s=math.inf)]}
    plot([one], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_tritons_model_gets_the_settings_it_is_to_run_with(tmp_path: Path) -> None:
    model = services.PeerModel(
        Path("python"), tmp_path / 'a "folder"', Path("t.json"), "int8", 129, num_cores=3
    )
    services._write_repository(tmp_path / "translate", model)
    text = (tmp_path / "translate" / "config.pbtxt").read_text(encoding="utf-8")
    assert "count: 3 kind" in text
    quoted = text.split("string_value: ")[1].split(" } }")[0]
    settings = json.loads(json.loads(quoted))
    assert settings == model.settings(1)
    assert settings["compute_type"] == "int8"
    assert (tmp_path / "translate" / "1" / "model.py").is_file()
