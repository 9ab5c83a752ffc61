"""Versions come and go in a running server, and no call fails for it."""

import asyncio
import contextlib
import json
import math
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs
from tests.integration.serving import BUNDLES, PATIENCE_S, Served, error_of, one_version, serving

from dragoman.cli.main import main
from dragoman.client import AsyncClient
from dragoman.v1 import decoding_pb2, model_pb2, translation_pb2, translation_pb2_grpc

Request = translation_pb2.TranslateRequest
ALLOWED = "models.allow_changes=true"
IN_PROCESSES = ("engine.lanes_run_in=processes", "engine.lanes=2")
THREADS: tuple[str, ...] = ()
TWO_FRONTS = (*IN_PROCESSES, "server.fronts=2")
LAYOUTS = pytest.mark.parametrize(
    "layout", [THREADS, IN_PROCESSES, TWO_FRONTS], ids=["threads", "processes", "fronts"]
)
LONG = decoding_pb2.DecodingOptions(min_tokens=60)


def wrong_answers(folder: Path) -> str:
    """Damage a bundle so that a golden example gives another answer."""
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["golden_examples"][0]["log_probability"] = -9.0
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return "now has log-probability"


def torn(folder: Path) -> str:
    content = (folder / "decode.onnx").read_bytes()
    (folder / "decode.onnx").write_bytes(content[: len(content) // 2])
    return "decode.onnx is corrupt: "


def missing(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json: No such file or directory"


DAMAGES = [wrong_answers, torn, missing]


def put(models: Path, version: str, damage: Callable[[Path], str] | None = None, *, of: str = "2") -> str:
    """A version in the models folder, moved there at once, as `dragoman export` does it."""
    hidden = models / "spell" / f".{version}"
    shutil.copytree(BUNDLES / "spell" / of, hidden)
    said = damage(hidden) if damage else ""
    hidden.rename(models / "spell" / version)
    return said


@dataclass
class Traffic:
    """What has become of calls.

    Attributes:
        answers: by version.
        failures: of unary calls and streams.
    """

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[grpc.aio.AioRpcError] = field(default_factory=list)

    async def more(self, num_answers: int) -> None:
        """Return when so many more calls have been answered."""
        wanted = self.answers.total() + num_answers
        async with asyncio.timeout(PATIENCE_S):
            while self.answers.total() < wanted:
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def traffic(served: Served) -> AsyncIterator[Traffic]:
    """Calls without a pause over several connections, a third of them streams; nothing repeats one that fails."""
    seen, stop = Traffic(), asyncio.Event()

    async def ask(stub: Any, *, is_stream: bool) -> None:
        request = Request(model="spell", inputs=["12", "907"], options=LONG)
        while not stop.is_set():
            try:
                if is_stream:
                    versions = [each.version async for each in stub.StreamTranslate(request) if each.version]
                    assert len(versions) == 2
                else:
                    answer = await stub.Translate(request)
                    assert len(answer.translations) == 2
                    versions = [answer.version]
                assert len(set(versions)) == 1
                seen.answers[versions[0]] += 1
            except grpc.aio.AioRpcError as error:
                seen.failures.append(error)

    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    address = f"127.0.0.1:{served.server.port}"
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as callers:
        for number in range(6):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            stub = translation_pb2_grpc.TranslationServiceStub(channel)
            callers.create_task(ask(stub, is_stream=number % 3 == 0))
        try:
            await seen.more(6)
            yield seen
        finally:
            stop.set()
    assert [f"{error.code().name}: {error.details()}" for error in seen.failures] == []


async def states(served: Served) -> dict[str, str]:
    held = await served.models.ListModels(model_pb2.ListModelsRequest())
    return {
        each.version: model_pb2.VersionState.Name(each.state).removeprefix("VERSION_STATE_").lower()
        for each in held.versions
        if each.model == "spell"
    }


async def become(served: Served, expected: dict[str, str]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await states(served) != expected:
            await asyncio.sleep(0.05)


async def health(served: Served, service: str) -> str:
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


async def version_of(served: Served, **fields: Any) -> str:
    answer = await served.translation.Translate(Request(model="spell", inputs=["12"], **fields))
    assert [each.text for each in answer.translations] == ["one two"]
    return answer.version


@LAYOUTS
async def test_a_switch_and_the_way_back_under_traffic_fail_no_call(
    tmp_path: Path, layout: tuple[str, ...]
) -> None:
    models = one_version(tmp_path, "spell/1")
    async with serving(models, ALLOWED, *layout) as served, traffic(served) as calls:
        assert await states(served) == {"1": "serving"}
        put(models, "2")
        await served.models.LoadModel(model_pb2.LoadModelRequest(model="spell"))
        assert await states(served) == {"1": "unloaded", "2": "serving"}
        before = calls.answers["1"]
        await calls.more(20)
        assert calls.answers["2"] >= 20 - 6
        assert calls.answers["1"] - before <= 6, "those whose answers were on their way"
        await served.models.LoadModel(model_pb2.LoadModelRequest(model="spell", version="1"))
        assert await states(served) == {"1": "serving", "2": "serving"}
        await served.models.UnloadModel(model_pb2.UnloadModelRequest(model="spell", version="2"))
        assert await states(served) == {"1": "serving", "2": "unloaded"}
        await calls.more(20)
        assert await version_of(served) == "1"


@pytest.mark.parametrize("layout", [THREADS, IN_PROCESSES], ids=["threads", "processes"])
async def test_a_version_that_cannot_be_served_changes_nothing_and_says_why(
    tmp_path: Path, layout: tuple[str, ...]
) -> None:
    models = one_version(tmp_path, "spell/1")
    async with serving(models, ALLOWED, *layout) as served, traffic(served) as calls:
        for version, damage in enumerate(DAMAGES, start=2):
            said = put(models, str(version), damage)
            with capture_logs() as log:
                load = model_pb2.LoadModelRequest(model="spell", version=str(version))
                error = await error_of(served.models.LoadModel(load))
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert f"spell/{version} cannot be served: " in (error.details() or "")
            assert said in (error.details() or "")
            assert str(tmp_path) not in (error.details() or "")
            [failed] = [each for each in log if each.get("state") == "failed"]
            assert said in failed["description"]
        await calls.more(20)
        assert set(calls.answers) == {"1"}
        held = await served.models.ListModels(model_pb2.ListModelsRequest())
        assert [model.version for model in held.models] == ["1"]
        assert [(each.version, each.reason) for each in held.not_loaded] == [
            (version, model_pb2.NOT_LOADED_REASON_BROKEN) for version in ("2", "3", "4")
        ]
        assert await states(served) == {"1": "serving", "2": "failed", "3": "failed", "4": "failed"}
        assert [await health(served, f"spell{version}") for version in ("", "/1", "/2")] == [
            *("SERVING", "SERVING", "NOT_SERVING")
        ]
        assert served.metric("models_not_loaded", reason="broken") == 3
        assert served.metric("model_version_state", model="spell", version="2", state="failed") == 1
        asked = Request(model="spell", version="2", inputs=["12"])
        error = await error_of(served.translation.Translate(asked))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "now has log-probability" in (error.details() or "")


async def test_the_watch_takes_what_is_whole_and_sound_alone(tmp_path: Path) -> None:
    models = one_version(tmp_path, "spell/1")
    async with serving(models, "models.watch=true", *IN_PROCESSES) as served, traffic(served) as calls:
        put(models, "2", wrong_answers)
        await become(served, {"1": "serving", "2": "failed"})
        copied = models / "spell" / "3"
        copied.mkdir()
        for file in sorted((BUNDLES / "spell" / "2").iterdir()):  # bundle.json first
            await become(served, {"1": "serving", "2": "failed", "3": "failed"})
            held = await served.models.ListModels(model_pb2.ListModelsRequest())
            assert held.not_loaded[-1].reason == model_pb2.NOT_LOADED_REASON_INCOMPLETE
            shutil.copy(file, copied)
        await become(served, {"1": "unloaded", "2": "failed", "3": "serving"})
        await calls.more(20)
        assert await version_of(served) == "3"
        assert "2" not in calls.answers
        assert served.metric("model_version_state", model="spell", version="3", state="serving") == 1
        assert served.metric("model_version_state", model="spell", version="1", state="serving") == 0


@pytest.mark.parametrize("layout", [THREADS, TWO_FRONTS], ids=["threads", "fronts"])
async def test_a_canary_gets_its_share_and_a_key_stays_where_it_is(
    tmp_path: Path, layout: tuple[str, ...]
) -> None:
    models = one_version(tmp_path, "spell/1", "spell/2")
    num_calls = 400
    async with serving(models, ALLOWED, "models.versions=all", *layout) as served:
        assert await states(served) == {"1": "serving", "2": "serving"}
        address = f"127.0.0.1:{served.server.port}"
        async with AsyncClient(address) as client:
            await client.set_alias("spell", "stable", "1")
            await client.set_alias("spell", "canary", "2", traffic_percent=10)
            held = await client.models()
            assert [(each.alias, each.version, each.traffic_percent) for each in held.aliases] == [
                ("canary", "2", 10.0),
                ("stable", "1", 0.0),
            ]
        assert [await version_of(served, version=alias) for alias in ("stable", "canary", "2")] == [
            "1",
            "2",
            "2",
        ]

        async def asked(key: str | None) -> str:
            metadata = [("dragoman-sticky-key", key)] if key else []
            request = Request(model="spell", inputs=["12"])
            return (await served.translation.Translate(request, metadata=metadata)).version

        drawn = Counter(await asyncio.gather(*(asked(None) for _ in range(num_calls))))
        deviation = math.sqrt(num_calls * 0.1 * 0.9)
        assert abs(drawn["2"] - 0.1 * num_calls) < 6 * deviation
        keys = [f"user-{number}" for number in range(num_calls // 4)]
        first = await asyncio.gather(*map(asked, keys))
        options = [("grpc.use_local_subchannel_pool", 1)]
        for _ in range(4):  # connections: of any front
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                served.channel, before = channel, served.channel
                assert await asyncio.gather(*map(asked, keys)) == first
                served.channel = before
        assert set(first) == {"1", "2"}


async def test_the_last_version_goes_and_comes_back(tmp_path: Path) -> None:
    async with serving(one_version(tmp_path, "spell/1", "count/2"), ALLOWED) as served:
        unload = model_pb2.UnloadModelRequest(model="spell")
        await served.models.UnloadModel(unload)
        assert await states(served) == {"1": "unloaded"}
        error = await error_of(served.translation.Translate(Request(model="spell", inputs=["12"])))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert (
            error.details() == "no model 'spell': it was unloaded, or never loaded; this server has: count/2"
        )
        assert await health(served, "spell") == "NOT_SERVING"
        assert (await served.http("/readyz"))[0] == 200, "the server serves on"
        assert (await error_of(served.models.UnloadModel(unload))).code() is grpc.StatusCode.NOT_FOUND
        load = model_pb2.LoadModelRequest(model="spell", version="1")
        for _ in range(2):  # what is loaded is loaded
            await served.models.LoadModel(load)
        assert await version_of(served) == "1"
        assert served.codes()["spell", "Translate", "NOT_FOUND"] == 1
        assert served.codes()["spell", "Translate", "OK"] == 1
        assert served.codes()["spell", "LoadModel", "OK"] == 2


@pytest.mark.parametrize("layout", [THREADS, TWO_FRONTS], ids=["threads", "fronts"])
async def test_names_of_calls_do_not_leave_the_models_folder(tmp_path: Path, layout: tuple[str, ...]) -> None:
    outside = one_version(tmp_path / "outside", "spell/2")
    models = one_version(tmp_path / "models", "spell/1")
    hostile = [
        "../outside/spell",
        str(outside / "spell"),
        "..",
        "spell/../spell",
        "spell\0",
        "",
        "a" * 10_000,
    ]
    async with serving(models, ALLOWED, *layout) as served:
        for name in hostile:
            for call in (
                served.models.LoadModel(model_pb2.LoadModelRequest(model=name, version="2")),
                served.models.UnloadModel(model_pb2.UnloadModelRequest(model=name)),
                served.models.DeleteAlias(model_pb2.DeleteAliasRequest(model=name, alias="x")),
            ):
                assert (await error_of(call)).code() is grpc.StatusCode.NOT_FOUND
        for version in ("../../outside/spell/2", "/2", "01", "\u0661", "1\0", "../1"):
            load = model_pb2.LoadModelRequest(model="spell", version=version)
            assert (await error_of(served.models.LoadModel(load))).code() is grpc.StatusCode.NOT_FOUND
        (models / "spell" / "3").symlink_to(outside / "spell" / "2")
        load = model_pb2.LoadModelRequest(model="spell", version="3")
        error = await error_of(served.models.LoadModel(load))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "spell/3 is a link out of the models folder" in (error.details() or "")
        alias = model_pb2.ModelAlias(model="spell", alias="../x", version="1", traffic_percent=101)
        error = await error_of(served.models.SetAlias(model_pb2.SetAliasRequest(alias=alias)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await version_of(served) == "1"


async def test_no_change_without_the_settings_leave(tmp_path: Path) -> None:
    async with serving(one_version(tmp_path, "spell/1", "spell/2")) as served:
        alias = model_pb2.ModelAlias(model="spell", alias="stable", version="2")
        for call in (
            served.models.LoadModel(model_pb2.LoadModelRequest(model="spell", version="1")),
            served.models.UnloadModel(model_pb2.UnloadModelRequest(model="spell")),
            served.models.SetAlias(model_pb2.SetAliasRequest(alias=alias)),
            served.models.DeleteAlias(model_pb2.DeleteAliasRequest(model="spell", alias="stable")),
        ):
            assert (await error_of(call)).code() is grpc.StatusCode.PERMISSION_DENIED
        assert await states(served) == {"1": "unloaded", "2": "serving"}


async def test_the_command_makes_changes_and_shows_them(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    models = one_version(tmp_path, "spell/1")
    async with serving(models, ALLOWED) as served:
        target = ("--target", f"127.0.0.1:{served.server.port}")

        async def run(*arguments: str) -> tuple[int, str, str]:
            code = await asyncio.to_thread(main, ["models", *arguments, *target])
            captured = capsysbinary.readouterr()
            return code, captured.out.decode(), captured.err.decode()

        put(models, "2")
        put(models, "3", wrong_answers)
        assert (await run("load", "spell", "2"))[0] == 0
        assert (await run("alias", "spell", "stable", "1", "--share", "90"))[0] == 0
        assert (await run("alias", "spell", "canary", "2"))[0] == 0
        code, _, error = await run("load", "spell")
        assert code == 2
        assert "error: spell/3 cannot be served: " in error
        code, _, error = await run("unload", "spell", "1")
        assert code == 2
        assert "the alias 'stable' names spell/1" in error
        code, shown, _ = await run()
        assert code == 0
        rows = [line.split() for line in shown.partition("Versions")[2].splitlines()]
        assert ["spell/1", "serving", "stable", "(90", "%)"] in rows
        assert ["spell/2", "serving", "canary"] in rows
        assert ["spell/3", "failed"] in rows
        assert (await run("alias", "spell", "stable", "--delete"))[0] == 0
        assert (await run("unload", "spell", "1"))[0] == 0
        assert await states(served) == {"1": "unloaded", "2": "serving", "3": "failed"}
        assert (await run("alias", "spell", "stable"))[0] == 2
        assert (await run("load", "nope"))[0] == 2


async def test_a_front_that_comes_later_knows_aliases_and_states(tmp_path: Path) -> None:
    models = one_version(tmp_path, "spell/1")
    async with serving(models, ALLOWED, *TWO_FRONTS) as served:
        put(models, "2")
        address = f"127.0.0.1:{served.server.port}"
        async with AsyncClient(address) as client:
            await client.load_model("spell", "2")
            await client.set_alias("spell", "stable", "1", traffic_percent=100)
        fronts = served.server._fronts
        assert fronts is not None
        [place] = fronts._fronts
        assert place.process is not None
        place.process._process.kill()
        place.is_serving.clear()
        async with asyncio.timeout(PATIENCE_S):
            await place.is_serving.wait()
        options = [("grpc.use_local_subchannel_pool", 1)]
        for _ in range(8):
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                stub = translation_pb2_grpc.TranslationServiceStub(channel)
                for version, expected in (("", "1"), ("stable", "1"), ("2", "2")):
                    request = Request(model="spell", version=version, inputs=["12"])
                    assert (await stub.Translate(request)).version == expected
