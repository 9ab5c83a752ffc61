"""What is whole is served; the rest is named in the log, in `ListModels` and in a metric."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from tests.integration.serving import BUNDLES, Served, error_of, one_version, serving

from dragoman.client import AsyncClient, Client, NotLoadedModel
from dragoman.server.app import Server
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import load_settings
from dragoman.server.errors import NOT_LOADED_REASONS, BundleError, ModelsError, ProviderUnavailable
from dragoman.v1 import model_pb2, translation_pb2

Request = translation_pb2.TranslateRequest


def half_copied(models: Path) -> None:
    (models / "spell" / "2").mkdir()
    shutil.copy(BUNDLES / "spell" / "2" / "bundle.json", models / "spell" / "2")


def empty(models: Path) -> None:
    (models / "spell" / "2").mkdir()


def lost_and_found(models: Path) -> None:
    (models / "lost+found").mkdir()


def other_bytes(models: Path) -> None:
    shutil.copytree(BUNDLES / "spell" / "1", models / os.fsdecode(b"caf\xe9") / "1")


def control_character(models: Path) -> None:
    shutil.copytree(BUNDLES / "spell" / "1", models / "a\nb" / "1")


def twin(models: Path) -> None:
    shutil.copytree(BUNDLES / "spell" / "2", models / "spell" / "01")


def huge_version(models: Path) -> None:
    shutil.copytree(BUNDLES / "spell" / "2", models / "spell" / ("9" * 19))


def dangling_link(models: Path) -> None:
    (models / "unmounted").symlink_to("/nowhere/at/all")


def dangling_version(models: Path) -> None:
    (models / "spell" / "7").symlink_to("/nowhere/at/all")


def for_another_provider_only(models: Path) -> None:
    shutil.copytree(BUNDLES / "spell" / "1", models / "aaa" / "3")
    path = models / "aaa" / "3" / "decode.onnx"
    path.write_bytes(path.read_bytes()[:-1])


CASES: list[tuple[Callable[[Path], None], str, str, str, str]] = [
    (half_copied, "spell", "2", "broken", "cannot read spell/2/align.onnx: No such file or directory"),
    (
        empty,
        "spell",
        "2",
        "broken",
        "no bundle in spell/2: cannot read bundle.json: No such file or directory",
    ),
    (lost_and_found, "lost+found", "", "not_a_model", "no folder in it is named by a number"),
    (other_bytes, "caf\\xe9", "", "invalid_name", "its name is not UTF-8, so no caller can ask for it"),
    (control_character, "a\nb", "", "invalid_name", "its name holds a character that cannot be printed"),
    (twin, "spell", "01", "duplicate_version", "it is the same number as 1, which stands beside it"),
    (huge_version, "spell", 19 * "9", "invalid_name", "its version has more than 18 digits"),
    (dangling_link, "unmounted", "", "unreadable", "it cannot be read: No such file or directory"),
    (dangling_version, "spell", "7", "unreadable", "it cannot be read: No such file or directory"),
    (for_another_provider_only, "aaa", "3", "broken", "aaa/3/decode.onnx is corrupt: "),
]


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as events:
        yield events


@pytest.mark.parametrize("layout", ["threads", "processes"])
@pytest.mark.parametrize(("damage", "name", "version", "reason", "said"), CASES)
async def test_what_is_whole_is_served_and_the_rest_is_named(
    damage: Callable[[Path], None],
    name: str,
    version: str,
    reason: str,
    said: str,
    layout: str,
    tmp_path: Path,
    log: list[Any],
) -> None:
    models = one_version(tmp_path, "spell/1")
    damage(models)
    async with serving(models, f"engine.lanes_run_in={layout}") as served:
        answer = await served.translation.Translate(Request(model="spell", inputs=["12"]))
        assert (answer.version, answer.translations[0].text) == ("1", "one two")
        response = await served.models.ListModels(model_pb2.ListModelsRequest())
        assert [model.name for model in response.models] == ["spell"]
        [told] = response.not_loaded
        assert (told.name, told.version) == (name, version)
        assert told.reason == model_pb2.NotLoadedReason.Value(f"NOT_LOADED_REASON_{reason.upper()}")
        assert told.description.startswith(said)
        counts = {each: served.metric("models_not_loaded", reason=each) for each in NOT_LOADED_REASONS}
        assert counts == {each: float(each == reason) for each in NOT_LOADED_REASONS}
    [event] = [event for event in log if event["event"] == "not_loaded"]
    assert (event["model"], event["version"], event["reason"]) == (name, version, reason)
    assert event["description"] == told.description


async def test_a_folder_that_the_system_refuses_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = one_version(tmp_path, "spell/1")
    (models / "private" / "1").mkdir(parents=True)
    iterdir = Path.iterdir

    def refuse(path: Path) -> Any:  # the tests may run as root, who is refused nothing
        if path.name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    async with serving(models) as served:
        response = await served.models.ListModels(model_pb2.ListModelsRequest())
        [told] = response.not_loaded
        assert (told.name, told.description) == ("private", "it cannot be read: Permission denied")
        assert told.reason == model_pb2.NOT_LOADED_REASON_UNREADABLE


async def test_a_fault_of_ours_in_one_model_keeps_no_other_from_being_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[Any]
) -> None:
    models = one_version(tmp_path, "spell/1", "count/1")
    read = Bundle.read

    def fail(folder: Path) -> Bundle:
        if folder.parent.name == "count":
            raise KeyError("surprise")
        return read(folder)

    monkeypatch.setattr(Bundle, "read", fail)
    async with serving(models) as served:
        response = await served.models.ListModels(model_pb2.ListModelsRequest())
        assert [told.description for told in response.not_loaded] == ["unexpected KeyError: 'surprise'"]
    [event] = [event for event in log if event["event"] == "load_failed"]
    assert isinstance(event["exc_info"], KeyError)


async def test_who_asks_for_what_is_not_loaded_hears_why(tmp_path: Path) -> None:
    models = one_version(tmp_path, "spell/1")
    half_copied(models)
    for_another_provider_only(models)
    async with serving(models) as served:
        for model, version, said in (
            (
                "spell",
                "2",
                r"no model 'spell/2': cannot read spell/2/align\.onnx: .* \(broken\); this server has",
            ),
            ("aaa", "", r"no model 'aaa': aaa/3/decode\.onnx is corrupt: .* \(broken\); this server has"),
            ("spell", "3", r"no model 'spell/3'; this server has: spell/1"),
        ):
            error = await error_of(
                served.translation.Translate(Request(model=model, version=version, inputs=["1"]))
            )
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert re.search(said, str(error.details())), error.details()


async def start(models: Path, layout: str, *overrides: str) -> Server:
    overrides = (f"engine.lanes_run_in={layout}", "engine.threads_per_lane=1", *overrides)
    settings = load_settings(
        options={"models.directory": models, "server.port": 0, "server.metrics_port": 0}, overrides=overrides
    )
    server = Server(settings)
    try:
        await server.start()
    finally:
        await server.close()
    return server


@pytest.mark.parametrize("layout", ["threads", "processes"])
async def test_where_nothing_can_be_served_the_server_says_so_and_leaves(
    layout: str, tmp_path: Path, log: list[Any]
) -> None:
    models = tmp_path / "models"
    (models / "spell" / "2").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"no bundle in .*models/spell/2: cannot read bundle\.json"):
        await start(models, layout)
    assert not log
    (models / "spell" / "1").mkdir()
    with pytest.raises(BundleError, match=r"no bundle in .*/spell/2: .*; none of 2 versions can be served$"):
        await start(models, layout)
    assert [(each["model"], each["version"]) for each in log] == [("spell", "2"), ("spell", "1")]


async def test_a_provider_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    models = one_version(tmp_path, "spell/1", "spell/2")
    with pytest.raises(ProviderUnavailable, match=r"provider 'cuda' .*; none of 2 versions can be served$"):
        await start(models, "auto", "engine.provider=cuda")


@pytest.mark.parametrize("layout", ["threads", "processes"])
@pytest.mark.parametrize("name", ["a\0b", ""])
async def test_a_models_folder_that_cannot_be(
    name: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelsError):
        await start(Path(name), layout)


async def test_01_alone_is_a_version(tmp_path: Path) -> None:
    shutil.copytree(BUNDLES / "spell" / "1", tmp_path / "spell" / "01")
    async with serving(tmp_path) as served:
        answer = await served.translation.Translate(Request(model="spell", version="01", inputs=["1"]))
        assert answer.version == "01"


async def test_digits_of_other_scripts_are_no_version(tmp_path: Path) -> None:
    models = one_version(tmp_path, "spell/1")
    shutil.copytree(BUNDLES / "spell" / "2", models / "spell" / "\uff12")
    async with serving(models) as served:
        assert [model.version for model in served.server._registry.models] == ["1"]


def expected() -> list[NotLoadedModel]:
    return [
        NotLoadedModel("lost+found", "", "not_a_model", "no folder in it is named by a number"),
        NotLoadedModel(
            "spell", "2", "broken", "no bundle in spell/2: cannot read bundle.json: No such file or directory"
        ),
    ]


@pytest.fixture
def partly_loaded(tmp_path: Path) -> Path:
    models = one_version(tmp_path, "spell/1")
    empty(models)
    lost_and_found(models)
    return models


async def test_the_clients_tell_it(partly_loaded: Path) -> None:
    async with serving(partly_loaded) as served:
        async with AsyncClient(f"127.0.0.1:{served.server.port}") as client:
            held = await client.models()
        assert [model.name for model in held] == ["spell"]
        assert list(held.not_loaded) == expected()
        assert await asyncio.to_thread(ask_blocking, served) == (["spell"], expected())


def ask_blocking(served: Served) -> tuple[list[str], list[NotLoadedModel]]:
    with Client(f"127.0.0.1:{served.server.port}") as client:
        held = client.models()
    return [model.name for model in held], list(held.not_loaded)


async def test_the_command_tells_it_in_80_columns(partly_loaded: Path) -> None:
    async with serving(partly_loaded) as served:
        command = [sys.executable, "-m", "dragoman", "models"]
        command += ["--target", f"127.0.0.1:{served.server.port}"]
        shown, as_json = await asyncio.gather(
            *(asyncio.to_thread(run, [*command, *options]) for options in ([], ["--json"]))
        )
    assert "spell/1" in shown.stdout
    assert "Not loaded" in shown.stdout
    assert "no folder in it is named by a number" in shown.stdout
    assert [model["name"] for model in json.loads(as_json.stdout)] == ["spell"]
    assert as_json.stderr.splitlines() == [
        f"not loaded: {place}: {told.reason}: {told.description}"
        for place, told in zip(("lost+found", "spell/2"), expected(), strict=True)
    ]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
