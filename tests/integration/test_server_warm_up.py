"""A server says that it serves once its lanes have taken steps and its fronts have answered; nothing counts that."""

import inspect
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
from tests.integration.serving import BUNDLES, PATIENCE_S, eventually, one_version, serving

from dragoman.client import Translator
from dragoman.server.engine.worker import LaneWorker
from dragoman.server.fronts.grpc.dragoman_v1 import rehearsal
from dragoman.server.fronts.grpc.dragoman_v1.generation import GenerationServicer
from dragoman.server.fronts.grpc.dragoman_v1.translation import TranslationServicer
from dragoman.server.models import running
from dragoman.server.operations.metrics import ModelMetrics
from dragoman.v1 import model_pb2, translation_pb2

Request = translation_pb2.TranslateRequest
IN_PROCESSES = ("engine.lanes_run_in=processes", "engine.lanes=2")
LAYOUTS = pytest.mark.parametrize("layout", [(), IN_PROCESSES], ids=["threads", "processes"])


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose lanes took a turn in this process, and those that a front answered for, in their order."""
    seen: list[str] = []
    take_turn, translate, generate = (
        LaneWorker.take_turn,
        TranslationServicer.Translate,
        GenerationServicer.Generate,
    )

    def turning(worker: LaneWorker[Any]) -> None:
        seen.append(f"lane {worker._model}")
        take_turn(worker)

    async def translating(servicer: TranslationServicer, request: Any, context: Any) -> Any:
        answer = await translate(servicer, request, context)
        seen.append(f"front {request.model}/{request.version}: {answer.translations[0].text}")
        return answer

    async def generating(servicer: GenerationServicer, request: Any, context: Any) -> None:
        await generate(servicer, request, context)
        seen.append(f"front {request.model}/{request.version}")

    monkeypatch.setattr(LaneWorker, "take_turn", turning)
    monkeypatch.setattr(TranslationServicer, "Translate", translating)
    monkeypatch.setattr(GenerationServicer, "Generate", generating)
    return seen


def of_fronts(steps: list[str]) -> list[str]:
    return [each.partition(":")[0] for each in steps if each.startswith("front")]


@LAYOUTS
async def test_lanes_and_fronts_are_warm_before_the_first_call_and_nothing_is_counted(
    layout: tuple[str, ...], steps: list[str], tmp_path: Path
) -> None:
    models = one_version(tmp_path, "spell/2", "count/2")
    with structlog.testing.capture_logs() as log:
        async with serving(models, *layout, "models.allow_changes=true", "models.versions=all") as served:
            assert of_fronts(steps) == ["front count/2", "front spell/2"]
            if not layout:
                assert {"lane spell/2", "lane count/2"} <= set(steps)
            for model in ("spell", "count"):
                assert served.metric("input_tokens_total", model=model) == 0
                assert served.metric("output_tokens_total", model=model) == 0
                for name in ("queue_duration", "inference_duration", "time_to_first_token"):
                    assert served.metric(f"{name}_seconds_count", model=model) == 0
                assert served.metric("batch_rows_count", model=model) == 0
                assert served.metric("step_duration_seconds_count", model=model, graph="decode") == 0
                assert served.model(model).engine.occupancy().num_running == 0
            assert served.codes() == {}
            shutil.copytree(BUNDLES / "spell" / "1", models / "spell" / "3")
            del steps[:]
            await served.models.LoadModel(
                model_pb2.LoadModelRequest(model="spell", version="3"), timeout=PATIENCE_S
            )
            assert of_fronts(steps) == ["front spell/3"]
            assert ("lane spell/3" in steps) == (not layout)
            assert served.metric("batch_rows_count", model="spell") == 0
            await served.translation.Translate(Request(model="spell", inputs=["12"]), timeout=PATIENCE_S)
            assert served.codes()["spell", "Translate", "OK"] == 1
            await eventually(lambda: served.metric("inference_duration_seconds_count", model="spell") == 1)
    assert not [each for each in log if each["event"] in {"rehearsal_failed", "step_failed"}]


def test_a_bundle_in_this_process_is_warm_too(steps: list[str]) -> None:
    with Translator(BUNDLES / "spell" / "2") as translator:
        assert of_fronts(steps) == ["front spell/2"]
        assert "lane spell/2" in steps
        assert translator.translate("12")[0].text == "one two"


async def test_a_front_that_cannot_rehearse_says_so_and_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setitem(rehearsal._CALLS, "translation", fail)
    with structlog.testing.capture_logs() as log:
        async with serving(BUNDLES) as served:
            answer = await served.translation.Translate(Request(model="spell", inputs=["12"]))
            assert answer.translations[0].text == "one two"
    assert [each["model"] for each in log if each["event"] == "rehearsal_failed"] == ["spell"]


def test_nothing_that_requests_observe_is_counted_in_a_rehearsal() -> None:
    of_requests = {
        name for name, _ in inspect.getmembers(ModelMetrics, inspect.isfunction) if name.startswith("observe")
    } - {"observe_step", "observe_failed_steps"}  # of lanes
    assert of_requests <= vars(rehearsal._Uncounted).keys()


async def test_neither_the_start_nor_a_change_waits_for_the_log_of_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[int] = []
    may_read = threading.Event()

    def note(pid: int) -> int:
        assert may_read.wait(PATIENCE_S)
        read.append(pid)
        return 1

    monkeypatch.setattr(running, "MEMORY_LOG_DELAY_S", 0.0)
    monkeypatch.setattr(running, "proportional_bytes", note)
    models = one_version(tmp_path, "spell/2")
    with structlog.testing.capture_logs() as log:
        async with serving(
            models, *IN_PROCESSES, "models.allow_changes=true", "models.versions=all"
        ) as served:
            shutil.copytree(BUNDLES / "spell" / "1", models / "spell" / "3")
            for name in ("LoadModel", "UnloadModel"):
                request = getattr(model_pb2, f"{name}Request")(model="spell", version="3")
                await getattr(served.models, name)(request, timeout=PATIENCE_S)
            assert not [each for each in log if each["event"] == "memory"]
            may_read.set()
            await eventually(lambda: any(each["event"] == "memory" for each in log))
    assert len(read) == 4, "a front, a host and two lanes"
