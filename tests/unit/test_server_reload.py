"""What a reload changes, what it names, and that a wrong file changes nothing."""

from typing import Any

import pytest
import structlog.testing

from dragoman.common.errors import SettingsError
from dragoman.server.config import ServerSettings
from dragoman.server.fronts.grpc.front import RELOADABLE_KEYS
from dragoman.server.operations.reload import Reloader, changed_keys


def settings(**sections: dict[str, Any]) -> ServerSettings:
    return ServerSettings.model_validate(sections)


class Owner:
    def __init__(self) -> None:
        self.used: list[ServerSettings] = []

    def __call__(self, new: ServerSettings) -> None:
        self.used.append(new)


@pytest.fixture
def owners() -> dict[str, Owner]:
    return {"log": Owner(), "limits": Owner(), "files": Owner()}


@pytest.fixture
def reloader(owners: dict[str, Owner]) -> Reloader:
    reloader = Reloader(settings())
    reloader.register("log", owners["log"], keys={"logging.level"})
    reloader.register("limits", owners["limits"], keys={"server.max_concurrent_calls", "server.max_inputs"})
    reloader.register("files", owners["files"])
    return reloader


def events(reloader: Reloader, new: ServerSettings) -> list[Any]:
    with structlog.testing.capture_logs() as logged:
        reloader.reload(lambda: new)
    return logged


def test_only_what_has_changed_is_taken_up_and_one_line_names_all(
    reloader: Reloader, owners: dict[str, Owner]
) -> None:
    new = settings(server={"max_concurrent_calls": 7, "port": 1}, engine={"lanes": 3})
    [event] = events(reloader, new)
    assert event == {
        "event": "reloaded",
        "log_level": "info",
        "parts": ["limits", "files"],
        "changed": ["server.max_concurrent_calls"],
        "needs_restart": ["engine.lanes", "server.port"],
    }
    assert not owners["log"].used
    assert owners["limits"].used == owners["files"].used == [reloader.settings]
    assert changed_keys(settings(), reloader.settings) == {"server.max_concurrent_calls"}


def test_without_a_change_files_are_read_again(reloader: Reloader, owners: dict[str, Owner]) -> None:
    [event] = events(reloader, settings())
    assert (event["parts"], event["changed"], event["needs_restart"]) == (["files"], [], [])
    assert len(owners["files"].used) == 1


def test_what_changes_back_is_taken_up_again(reloader: Reloader, owners: dict[str, Owner]) -> None:
    for level in ("debug", "info", "info"):
        events(reloader, settings(logging={"level": level}))
    assert [each.logging.level for each in owners["log"].used] == ["debug", "info"]


def test_a_wrong_file_leaves_everything_as_it_was(reloader: Reloader, owners: dict[str, Owner]) -> None:
    def read() -> ServerSettings:
        raise SettingsError("server.toml: server.port = 'x': Input should be a valid integer")

    with structlog.testing.capture_logs() as logged:
        reloader.reload(read)
    [event] = logged
    assert (event["event"], event["log_level"]) == ("not_reloaded", "error")
    assert event["error"] == "server.toml: server.port = 'x': Input should be a valid integer"
    assert reloader.settings == settings()
    assert not any(owner.used for owner in owners.values())


def test_what_does_not_fit_to_what_stays_changes_nothing(
    reloader: Reloader, owners: dict[str, Owner]
) -> None:
    """The new queue is long enough for the new calls. But the queue cannot change while the server runs."""
    new = settings(server={"max_inputs": 5000}, engine={"max_waiting": 5000}, logging={"level": "debug"})
    [event] = events(reloader, new)
    assert event["event"] == "not_reloaded"
    assert "server.max_inputs = 5000 is more than engine.max_waiting = 1024" in event["error"]
    assert not any(owner.used for owner in owners.values())


def test_every_reloadable_key_is_a_setting() -> None:
    known = {
        f"{name}.{key}"
        for name in ServerSettings.model_fields
        for key in type(getattr(settings(), name)).model_fields
    }
    assert known >= RELOADABLE_KEYS
