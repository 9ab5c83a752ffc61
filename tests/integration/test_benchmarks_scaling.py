"""The scaling benchmark's launchers put sleeping graphs in wherever lanes run, and its readings name each process."""

from pathlib import Path

import pytest
from benchmarks import scaling
from benchmarks.serving.sleeping_bundle import write_sleeping_bundle

LAYOUTS = {"processes": {"front", "host", "lane", "generator"}, "threads": {"front", "generator"}}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_sleeping_bundle(tmp_path / "sleeping" / "1")
    return tmp_path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_server_and_an_engine_alone_answer_with_graphs_that_sleep(
    models: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(scaling.__file__).parents[1])  # as make runs it: launchers are modules beside it
    override = f"engine.lanes_run_in={layout}"
    served = scaling.served_with(
        models, 2, 1.0, [override]
    )  # on a busy machine, too, answers come in that time
    assert served.keys() == {32, 256}
    for reading in served.values():
        assert reading.calls_per_s > 0
        assert 0 < reading.p50_s <= reading.p99_s
        assert reading.cpu_s.keys() == LAYOUTS[layout]
        assert reading.pss_bytes.keys() == LAYOUTS[layout] - {"generator"}
    alone = scaling.engine_alone(models, 2, 0.2, [override])
    assert min(alone.answers_per_s, alone.front_s, alone.lanes_s) >= 0
    assert alone.answers_per_s > 0


def test_an_engine_that_cannot_start_says_why(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(scaling.__file__).parents[1])
    with pytest.raises(RuntimeError, match=r"with 1 lanes failed: (.|\n)*no_such_key"):
        scaling.engine_alone(models, 1, 0.2, ["engine.no_such_key=1"])
