"""What comes into a models folder is served once it is complete; nothing else is, and the catalog says why."""

import asyncio
import shutil
from pathlib import Path

from tests.unit.test_server_repository import FakeEngine, begun, folder, states, taken

from dragoman.server.errors import BundleError
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
