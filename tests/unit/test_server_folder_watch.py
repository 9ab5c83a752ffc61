"""What comes into a models folder is served once it is complete; nothing else is, and the catalog says why."""

import asyncio
import errno
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_server_repository import FakeEngine, begun, folder, states, taken

from dragoman.server.bundle.reader import Bundle
from dragoman.server.errors import BundleError, ResourceUnavailable
from dragoman.server.models.catalog import Catalog, VersionState, VersionStatus
from dragoman.server.models.folder_watch import FolderWatch, changes_in, fingerprint_of
from dragoman.server.models.repository import Repository

SPELL = Path(__file__).parents[1] / "fixtures" / "bundles" / "spell" / "2"
PATIENCE_S = 20.0


async def watched(
    tmp_path: Path, engine: FakeEngine, versions: str = "latest"
) -> tuple[Repository, FolderWatch, Path]:
    models = folder(tmp_path, "1")
    repository, _ = await begun(models, engine, versions)
    return repository, FolderWatch(repository, models, serves_all=versions == "all"), models / "dates"


def why(repository: Repository, version: str) -> tuple[str, str]:
    [status] = [each for each in repository.catalog.versions if each.version == version]
    return status.reason, status.description


async def test_a_bundle_that_is_copied_file_by_file_is_served_when_it_is_whole(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, watch, dates = await watched(tmp_path, engine)
    (dates / "2").mkdir()
    await watch.look()
    assert why(repository, "2") == (
        "incomplete",
        "no bundle in dates/2: cannot read bundle.json: No such file or directory",
    )
    files = sorted(SPELL.iterdir(), key=lambda path: path.name != "bundle.json")
    for file in files:
        content = file.read_bytes()
        for part in (content[: len(content) // 2], content):
            assert taken(engine) == {"1"}
            assert states(repository) == {"1": "serving", "2": "failed"}
            (dates / "2" / file.name).write_bytes(part)
            await watch.look()
        if file != files[-1]:
            assert why(repository, "2")[0] == "incomplete"
            assert "dates/2/" in why(repository, "2")[1]
    assert states(repository) == {"1": "unloaded", "2": "serving"}
    assert taken(engine) == {"2"}


async def test_a_wrong_version_is_tried_again_only_when_it_has_changed(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, watch, dates = await watched(tmp_path, engine)
    shutil.copytree(SPELL, dates / "2")
    engine.failures["2"] = BundleError("golden example 'x' now gives 'y'")
    loads: list[str] = []
    load_version = engine.load_version

    async def counted(name: str, version: str) -> None:
        loads.append(version)
        await load_version(name, version)

    engine.load_version = counted  # type: ignore[method-assign]
    for _ in range(3):
        await watch.look()
    assert loads == ["2"]
    assert why(repository, "2") == ("broken", "golden example 'x' now gives 'y'")
    assert taken(engine) == {"1"}
    shutil.move(dates / "2", dates.parent / "2")
    await watch.look()
    assert states(repository) == {"1": "serving"}
    shutil.move(dates.parent / "2", dates / "2")
    engine.failures.clear()
    (dates / "2" / "tokenizer.json").touch()
    await watch.look()
    assert loads == ["2", "2"]
    assert taken(engine) == {"2"}


class Clock:
    """Shows the time that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


async def test_what_this_server_could_not_have_is_tried_again_ever_later(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, _, dates = await watched(tmp_path, engine)
    clock = Clock()
    watch = FolderWatch(repository, dates.parent, serves_all=False, clock=clock)
    shutil.copytree(SPELL, dates / "2")
    engine.failures["2"] = ResourceUnavailable("no memory for 64 rows")
    tried_at_s: list[float] = []
    load_version = engine.load_version

    async def counted(name: str, version: str) -> None:
        tried_at_s.append(clock.now_s)
        await load_version(name, version)

    engine.load_version = counted  # type: ignore[method-assign]
    said = []
    for _ in range(250):
        await watch.look()
        said.append(why(repository, "2"))
        clock.now_s += 5.0
    delays = [after - before for before, after in pairwise(tried_at_s)]
    assert delays == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert said[0] == ("unavailable", "no memory for 64 rows; it is tried again in 5 s")
    assert said[-1] == ("unavailable", "no memory for 64 rows; it is tried again in 300 s")
    assert states(repository) == {"1": "serving", "2": "failed"}
    (dates / "2" / "tokenizer.json").touch()
    await watch.look()
    assert why(repository, "2")[1].endswith("; it is tried again in 5 s")
    engine.failures.clear()
    await watch.look()
    assert states(repository) == {"1": "serving", "2": "failed"}
    clock.now_s += 5.0
    await watch.look()
    assert states(repository) == {"1": "unloaded", "2": "serving"}
    assert taken(engine) == {"2"}


async def test_what_could_not_be_had_at_the_start_is_tried_again_and_what_was_wrong_is_not(
    tmp_path: Path,
) -> None:
    engine = FakeEngine("1")
    models = folder(tmp_path, "1")
    for version in ("2", "3"):
        shutil.copytree(SPELL, models / "dates" / version)
    engine.fronts[0].show(
        Catalog(
            (
                VersionStatus("dates", "2", VersionState.FAILED, "unavailable", "no memory"),
                VersionStatus(
                    "dates", "3", VersionState.FAILED, "broken", "golden example 'x' now gives 'y'"
                ),
            )
        )
    )
    repository, _ = await begun(models, engine)
    stop = asyncio.Event()
    watching = asyncio.create_task(FolderWatch(repository, models, serves_all=False).run(stop))
    async with asyncio.timeout(PATIENCE_S):
        while states(repository)["2"] != "serving":
            await asyncio.sleep(0.01)
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        await watching
    assert states(repository) == {"1": "unloaded", "2": "serving", "3": "failed"}


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EMFILE, "unavailable"), (errno.EIO, "unavailable"), (errno.ELOOP, "broken")],
)
async def test_a_file_that_the_system_cannot_read_now_is_no_fault_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    engine = FakeEngine("1")
    repository, watch, dates = await watched(tmp_path, engine)
    shutil.copytree(SPELL, dates / "2")

    async def load_version(name: str, version: str) -> None:
        Bundle.read(dates / version)

    engine.load_version = load_version  # type: ignore[method-assign]

    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("dragoman.server.bundle.reader.os.open", refuse)
        await watch.look()
    assert why(repository, "2")[0] == reason
    assert os.strerror(number) in why(repository, "2")[1]


async def test_only_a_higher_version_is_news(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, watch, dates = await watched(tmp_path, engine)
    for version in ("2", "3"):
        shutil.copytree(SPELL, dates / version)
    await watch.look()
    assert states(repository) == {"1": "unloaded", "2": "unloaded", "3": "serving"}
    await repository.load("dates", "2")
    await repository.unload("dates", "3")  # back to what was before
    for _ in range(2):
        await watch.look()
    assert states(repository) == {"1": "unloaded", "2": "serving", "3": "unloaded"}
    shutil.rmtree(dates / "3")
    shutil.rmtree(dates / "2")
    await watch.look()
    assert states(repository) == {"1": "unloaded", "2": "serving"}  # what is served needs no folder
    assert taken(engine) == {"2"}


async def test_a_lower_complete_version_is_served_while_the_highest_is_not_whole(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, watch, dates = await watched(tmp_path, engine)
    shutil.copytree(SPELL, dates / "2")
    (dates / "3").mkdir()
    await watch.look()
    assert states(repository) == {"1": "unloaded", "2": "serving", "3": "failed"}
    shutil.rmtree(dates / "3")
    await watch.look()
    assert states(repository) == {"1": "unloaded", "2": "serving"}


async def test_where_all_versions_are_served_each_new_one_is_added(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, watch, dates = await watched(tmp_path, engine, "all")
    for version in ("2", "3"):
        shutil.copytree(SPELL, dates / version)
    shutil.copytree(SPELL, dates.parent / "numbers" / "7")
    await watch.look()
    assert states(repository) == {"1": "serving", "2": "serving", "3": "serving"}
    assert states(repository, "numbers") == {"7": "serving"}
    await repository.unload("dates", "2")
    await watch.look()
    assert states(repository) == {"1": "serving", "2": "unloaded", "3": "serving"}


async def test_an_alias_keeps_the_version_that_a_new_one_supersedes(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, watch, dates = await watched(tmp_path, engine)
    await repository.set_alias("dates", "stable", "1", 100.0)
    shutil.copytree(SPELL, dates / "2")
    await watch.look()
    assert states(repository) == {"1": "serving", "2": "serving"}
    assert taken(engine) == {"1"}


async def test_a_change_anywhere_below_wakes_the_watch(tmp_path: Path) -> None:
    stop = asyncio.Event()
    (tmp_path / "dates").mkdir()
    changes = changes_in(tmp_path, stop)
    await anext(changes)  # at once
    for change in (
        (tmp_path / "dates" / "1").mkdir,
        (tmp_path / "dates" / "1" / "bundle.json").touch,
        lambda: shutil.move(tmp_path / "dates", tmp_path / "numbers"),
    ):
        waking = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.1)  # until the watch is set up, which tells of nothing that was before
        change()
        async with asyncio.timeout(PATIENCE_S):
            await waking
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        assert [None async for _ in changes] == []


async def test_a_folder_that_is_gone_is_looked_at_again(tmp_path: Path) -> None:
    stop = asyncio.Event()
    changes = changes_in(tmp_path / "gone", stop)
    await anext(changes)
    waiting = asyncio.ensure_future(anext(changes, None))
    await asyncio.sleep(0)
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        await waiting


def test_a_fingerprint_changes_with_any_file(tmp_path: Path) -> None:
    seen = {fingerprint_of(tmp_path)}
    (tmp_path / "a").write_text("a")
    seen.add(fingerprint_of(tmp_path))
    (tmp_path / "a").write_text("ab")
    seen.add(fingerprint_of(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    seen.add(fingerprint_of(tmp_path))
    assert len(seen) == 4
    assert fingerprint_of(tmp_path) in seen
    assert fingerprint_of(tmp_path / "gone") == fingerprint_of(tmp_path / "gone")
