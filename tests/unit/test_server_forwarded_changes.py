"""A change that a further front asks for ends there as it ended in the server process."""

import asyncio
from typing import Any

import msgspec
import pytest
import structlog

from dragoman.server.errors import (
    Draining,
    EngineError,
    EngineUnavailable,
    FailedChange,
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
    PermissionDenied,
    RequestError,
)
from dragoman.server.fronts.processes.changes import ForwardedChanges, make_change
from dragoman.server.fronts.processes.messages import ChangeMade, MakeChange, ToFront, ToServer
from dragoman.server.models.catalog import Catalog, VersionState, VersionStatus
from dragoman.server.models.routes import Alias
from dragoman.server.processes.memory_files import memory_file, read_memory_file


class Changes:
    """Of the server process: notes each, and fails with `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.made: list[tuple[Any, ...]] = []
        self._error = error

    async def _make(self, *change: Any) -> None:
        self.made.append(change)
        if self._error is not None:
            raise self._error

    async def load(self, name: str, version: str = "") -> None:
        await self._make("load", name, version)

    async def unload(self, name: str, version: str = "") -> None:
        await self._make("unload", name, version)

    async def set_alias(self, name: str, alias: str, version: str, traffic_percent: float) -> None:
        await self._make("set_alias", name, alias, version, traffic_percent)

    async def delete_alias(self, name: str, alias: str) -> None:
        await self._make("delete_alias", name, alias)


def through_bytes(message: msgspec.Struct, kind: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=kind)


def forwarded(changes: Changes) -> ForwardedChanges:
    """Those of a front whose messages go through bytes to `changes` and back."""
    tasks: set[asyncio.Task[None]] = set()

    async def answer(asked: MakeChange) -> None:
        made = await make_change(changes, through_bytes(asked, ToServer))
        told = through_bytes(made, ToFront)
        assert isinstance(told, ChangeMade)
        front.receive(told)

    def send(asked: MakeChange) -> None:
        tasks.add(asyncio.create_task(answer(asked)))

    front = ForwardedChanges(send)
    return front


async def test_each_change_arrives_whole() -> None:
    changes = Changes()
    front = forwarded(changes)
    await asyncio.gather(
        front.load("dates"),
        front.load("dates", "2"),
        front.unload("dates", "1"),
        front.set_alias("dates", "canary", "2", 12.5),
        front.delete_alias("dates", "stable"),
    )
    assert changes.made == [
        ("load", "dates", ""),
        ("load", "dates", "2"),
        ("unload", "dates", "1"),
        ("set_alias", "dates", "canary", "2", 12.5),
        ("delete_alias", "dates", "stable"),
    ]


@pytest.mark.parametrize(
    "error",
    [
        ModelNotFound("dates/3", ["dates/1", "dates/2"], "it is not in the models folder"),
        FailedChange("dates/2 cannot be served: golden example 'x' now gives 'y'"),
        InvalidRequest([FieldViolation("alias", "'2': no"), FieldViolation("traffic_percent", "101")]),
        EngineUnavailable("what loads it has ended"),
        PermissionDenied("not yours"),
        Draining(),
    ],
)
async def test_a_failure_is_the_same_in_the_front(error: RequestError) -> None:
    with pytest.raises(type(error)) as raised:
        await forwarded(Changes(error)).load("dates", "3")
    assert str(raised.value) == str(error)
    if isinstance(error, InvalidRequest):
        assert isinstance(raised.value, InvalidRequest)
        assert raised.value.violations == error.violations


async def test_a_fault_of_ours_is_answered_too_and_keeps_its_details() -> None:
    with (
        structlog.testing.capture_logs() as log,
        pytest.raises(EngineError, match="a change failed") as raised,
    ):
        await asyncio.wait_for(forwarded(Changes(OSError("/secret"))).unload("dates"), 5.0)
    assert "/secret" not in str(raised.value)
    assert [each["event"] for each in log] == ["change_failed"]


async def test_an_answer_whose_caller_has_left_is_for_nobody() -> None:
    front = ForwardedChanges(lambda _: None)
    asking = asyncio.create_task(front.load("dates"))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    front.receive(ChangeMade(0))


def test_a_catalog_of_any_size_goes_through_memory() -> None:
    versions = tuple(
        VersionStatus("dates", str(number), VersionState.FAILED, "broken", "x" * 500)
        for number in range(2_000)
    )
    catalog = Catalog(versions, {"dates": {"stable": Alias("1", 33.3)}})
    content = read_memory_file(memory_file(msgspec.msgpack.encode(catalog)))
    assert msgspec.msgpack.decode(content, type=Catalog) == catalog
