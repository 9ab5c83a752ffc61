"""The growth benchmark changes one thing along each series, and says how time and memory follow."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.growth import check_lengths
from benchmarks.serving.contest import Standing
from benchmarks.serving.growth_report import Growth, Measured, exponents, growth_rows, plot, report_growth
from benchmarks.serving.growth_subject import MAX_TOKENS, Point, Series, Work, growth_series, growth_subject
from benchmarks.serving.memory import DragomanProcess, Memory, arena_bytes, measure_memory
from benchmarks.serving.subject import Subject
from benchmarks.serving.systems import Reading, Setting, Workload

from dragoman.model.tokenizer import END_ID, SPECIAL_TOKENS
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.engine.layout import lane_layout

BUNDLE = Bundle.read(Path(__file__).parents[1] / "fixtures" / "bundles" / "spell" / "1")
WORK = Work(lengths=(8, 512), streams=(1, 3, 200), sizes=("mini", "tiny"), size="mini")
MIB = 2**20


@dataclasses.dataclass
class Named:
    """A system that only has a name."""

    name: str
    precision: str = "int8"

    def settings(self, workload: Workload) -> list[Setting]:
        return [{"threads": 2}]

    def prepare(self, setting: Setting) -> None:
        pass

    def run(self, workload: Workload, turn_s: float) -> Reading:
        return Reading(1.0, 1)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def subjects() -> Mapping[str, Subject]:
    return {size: growth_subject(size, seed=1) for size in WORK.sizes}


def measured(name: str, value: int, seconds: list[float], arena_bytes: int | None = None) -> Measured:
    workload = Workload(f"source of {value} tokens", [[5] * value] * 2, max_tokens=50, min_tokens=50)
    readings = [Reading(one, 100) for one in seconds]
    standing = Standing(Named(name), workload, {"threads": 2}, readings)
    memory = Memory(loaded_bytes=3 * MIB, peak_bytes=value * MIB)
    return Measured(Point("mini", value, workload), standing, memory, arena_bytes)


def growth() -> Growth:
    pairs = []
    for value, ours, theirs in ((8, [1.0, 2.0, 1.0], [2.0, 2.0, 2.0]), (32, [2.0] * 3, [2.0] * 3)):
        mine = measured("dragoman", value, ours, arena_bytes=5 * MIB)
        peer = measured("CTranslate2", value, theirs)
        # Both have the same piece of work, as `compete` hands it out.
        point = dataclasses.replace(peer.point, workload=mine.point.workload)
        standing = dataclasses.replace(peer.standing, workload=mine.point.workload)
        pairs += [mine, dataclasses.replace(peer, point=point, standing=standing)]
    series = Series("source length", "tokens of the source", [one.point for one in pairs[::2]])
    return Growth(series, pairs)


def test_every_model_reads_and_writes_the_longest_and_the_seed_decides_its_weights(
    subjects: Mapping[str, Subject],
) -> None:
    for subject in subjects.values():
        assert (subject.dims.max_source_tokens, subject.dims.max_target_tokens) == (MAX_TOKENS, MAX_TOKENS)
    again = growth_subject("mini", seed=1).model.embedding.token.weight
    np.testing.assert_array_equal(again.detach(), subjects["mini"].model.embedding.token.weight.detach())


def test_one_thing_grows_along_each_series(subjects: Mapping[str, Subject]) -> None:
    found = {series.name: series for series in growth_series(subjects, WORK, seed=1, num_cores=2)}

    def shapes(name: str) -> list[tuple[str, int, int, int]]:
        """Model, inputs, tokens of a source, tokens of an answer."""
        return [
            (one.size, len(one.workload.inputs), len(one.workload.inputs[0]), one.workload.max_tokens)
            for one in found[name].points
        ]

    assert shapes("source length") == [("mini", 16, 8, 32), ("mini", 16, 512, 32)]
    assert shapes("answer length") == [("mini", 16, 16, 8), ("mini", 16, 16, 512)]
    assert shapes("streams") == [("mini", 1, 16, 32), ("mini", 3, 16, 32), ("mini", 200, 16, 32)]
    assert shapes("model size") == [("mini", 16, 16, 32), ("tiny", 16, 16, 32)]
    assert [point.value for point in found["streams"].points] == [1, 3, 200]
    weights = [sum(p.numel() for p in subjects[size].model.parameters()) for size in WORK.sizes]
    assert [point.value for point in found["model size"].points] == weights


def test_inputs_are_sources_of_one_length_and_slots_no_more_than_a_servers(
    subjects: Mapping[str, Subject],
) -> None:
    for series in growth_series(subjects, WORK, seed=1, num_cores=2):
        for point in series.points:
            assert point.workload.forced
            for ids in point.workload.inputs:
                assert ids[-1] == END_ID
                assert min(ids[:-1]) >= len(SPECIAL_TOKENS)
                assert max(ids) < subjects[point.size].dims.vocabulary_size
        if series.name == "streams":
            assert [point.workload.num_rows for point in series.points] == [1, 2, None]


def test_an_exponent_is_the_slope_between_neighbours() -> None:
    assert exponents([8, 32, 128], [1.0, 4.0, 64.0]) == [None, 1.0, 2.0]
    first, flat, falling = exponents([1, 10, 100], [3.0, 3.0, 0.3])
    assert (first, flat) == (None, 0.0)
    assert falling is not None
    assert math.isclose(falling, -1.0)
    assert exponents([5], [1.0]) == [None]


def test_a_table_follows_each_system_and_sets_the_peer_beside_dragoman() -> None:
    rows = list(growth_rows(growth()))
    assert [row[0] for row in rows] == [
        "dragoman int8",
        "  source of 8 tokens",
        "  source of 32 tokens",
        "CTranslate2 int8",
        "  source of 8 tokens",
        "  source of 32 tokens",
    ]
    assert rows[1][1:] == ["10.0000", "", "100", "", "5.0", "3.0", "8.0", "2"]
    assert rows[2][1:] == ["20.0000", "+0.50", "50", "", "5.0", "3.0", "32.0", "2"]
    assert rows[4][1:] == ["20.0000", "", "50", "2.00 (1.00 to 2.00)", "", "3.0", "8.0", "2"]
    assert rows[5][1:] == ["20.0000", "+0.00", "50", "1.00 (1.00 to 1.00)", "", "3.0", "32.0", "2"]


def test_every_figure_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_growth([growth()], "int8", tmp_path / "growth.json")
    assert "source of 32 tokens" in capsys.readouterr().out
    figures = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    [series] = figures["series"]
    ours, peer = series["results"][1], series["results"][3]
    assert (ours["system"], ours["exponent"], ours["arena_bytes"], ours["ratio"]) == (
        "dragoman",
        0.5,
        5 * MIB,
        None,
    )
    assert (peer["system"], peer["peak_bytes"], peer["arena_bytes"]) == ("CTranslate2", 32 * MIB, None)
    assert peer["ratio"] == {"median": 1.0, "least": 1.0, "most": 1.0}


def test_the_curves_are_a_picture(tmp_path: Path) -> None:
    plot([growth(), growth()], "int8", tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_an_answer_that_ends_early_is_no_measurement() -> None:
    whole = measured("a", 8, [1.0]).standing
    check_lengths([whole])
    short = dataclasses.replace(whole, readings=[Reading(1.0, 100), Reading(1.0, 99)])
    with pytest.raises(RuntimeError, match="a, source of 8 tokens: 99 tokens, not 100"):
        check_lengths([short])


def test_arenas_are_counted_as_the_server_allocates_them() -> None:
    manifest = BUNDLE.manifest
    dims, limits = manifest.dimensions, manifest.limits
    num_layers = sum(name.startswith("cross_key_") for name in manifest.graphs["decode"].inputs)
    width = dims.num_kv_heads * dims.head_size
    per_layer = 2 * width * (limits.max_context_tokens + limits.max_source_tokens + 1)
    row_bytes = 4 * num_layers * per_layer
    num_lanes, _ = lane_layout(EngineSettings())
    assert arena_bytes(manifest, {"slots_per_lane": 3}) == num_lanes * 3 * row_bytes


def test_the_engine_in_a_process_of_its_own_does_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))  # as an installation has it
    workload = Workload("work", [[5, 6, END_ID]] * 4, max_tokens=8, min_tokens=8, num_rows=2)
    setting: dict[str, Any] = {"slots_per_lane": 2, "order": "as given"}
    process = DragomanProcess(BUNDLE)
    try:
        memory = measure_memory(process, setting, workload)
        assert process.run(workload, 0.0).num_tokens == 32
    finally:
        process.close()
    assert 0 < memory.loaded_bytes <= memory.peak_bytes
