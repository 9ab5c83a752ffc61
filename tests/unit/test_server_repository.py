"""What the repository of a running server does with versions, with an engine that loads nothing."""

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.common.errors import DragomanError
from dragoman.server.errors import (
    BundleError,
    FailedChange,
    InvalidRequest,
    ModelNotFound,
    ResourceUnavailable,
)
from dragoman.server.models.catalog import Catalog, VersionState
from dragoman.server.models.registry import Lease, Registry
from dragoman.server.models.repository import Repository


class FakeEngine:
    """Has two fronts. A version is added to one after the other; `failures` has the versions that cannot be loaded."""

    def __init__(self, *versions: str) -> None:
        self.fronts = [Registry([self._model(each) for each in versions]) for _ in range(2)]
        self.failures: dict[str, Exception] = {}
        self.num_changes = 0
        self.unloaded: list[str] = []

    def _model(self, version: str, name: str = "dates") -> Any:
        return SimpleNamespace(name=name, version=version)

    @contextlib.contextmanager
    def _alone(self) -> Any:
        self.num_changes += 1
        assert self.num_changes == 1, "two changes at a time"
        yield
        self.num_changes -= 1

    async def load_version(self, name: str, version: str) -> None:
        with self._alone():
            await asyncio.sleep(0)
            if version in self.failures:
                self.num_changes -= 1
                raise self.failures[version]
            for front in self.fronts:
                front.add(self._model(version, name))
                await asyncio.sleep(0)

    async def unload_version(self, name: str, version: str) -> None:
        with self._alone():
            await asyncio.gather(*(front.remove(name, version) for front in self.fronts))
            self.unloaded.append(version)


def folder(directory: Path, *versions: str, name: str = "dates") -> Path:
    for version in versions:
        (directory / name / version).mkdir(parents=True)
    return directory


async def begun(
    directory: Path, engine: FakeEngine, versions: str = "latest"
) -> tuple[Repository, list[Catalog]]:
    repository = Repository(directory, engine, serves_all=versions == "all")
    shown: list[Catalog] = []

    def show(catalog: Catalog) -> None:
        shown.append(catalog)
        for front in engine.fronts:
            front.show(catalog)

    repository.show = show
    await repository.begin(engine.fronts[0])
    return repository, shown


def states(repository: Repository, name: str = "dates") -> dict[str, str]:
    return {each.version: each.state.value for each in repository.catalog.versions if each.name == name}


def taken(engine: FakeEngine, asked: str = "", key: str | None = None) -> set[str]:
    """The versions that a call gets, by front."""
    leases = [front.lease("dates", asked, key) for front in engine.fronts]
    return {lease.model.version for lease in leases}


async def test_a_load_without_a_version_switches_to_the_highest(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, shown = await begun(folder(tmp_path, "1", "2", "3"), engine)
    assert states(repository) == {"1": "serving", "2": "unloaded", "3": "unloaded"}
    await repository.load("dates")
    assert states(repository) == {"1": "unloaded", "2": "unloaded", "3": "serving"}
    assert taken(engine) == {"3"}
    history = [
        [each.state.value for each in catalog.versions if each.version in {"1", "3"}] for catalog in shown
    ]
    assert history[-4:] == [
        ["serving", "loading"],
        ["serving", "serving"],
        ["draining", "serving"],
        ["unloaded", "serving"],
    ]


async def test_a_load_of_a_version_keeps_the_others(tmp_path: Path) -> None:
    engine = FakeEngine("2")
    repository, _ = await begun(folder(tmp_path, "1", "2"), engine)
    await repository.load("dates", "1")
    assert states(repository) == {"1": "serving", "2": "serving"}
    assert taken(engine) == {"2"}
    await repository.unload("dates", "2")
    assert taken(engine) == {"1"}


async def test_where_all_versions_are_served_a_load_drains_none(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, _ = await begun(folder(tmp_path, "1", "2"), engine, versions="all")
    await repository.load("dates")
    assert states(repository) == {"1": "serving", "2": "serving"}


async def test_a_load_of_what_is_served_does_nothing(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, shown = await begun(folder(tmp_path, "1"), engine)
    num_shown = len(shown)
    await repository.load("dates", "1")
    await repository.load("dates")
    assert len(shown) == num_shown


@pytest.mark.parametrize(
    ("error", "reason", "description"),
    [
        (
            BundleError("{}/dates/2: golden example 'x' gives 'y'"),
            "broken",
            "dates/2: golden example 'x' gives 'y'",
        ),
        (ResourceUnavailable("it needs 3 GiB"), "unavailable", "it needs 3 GiB"),
        (ZeroDivisionError("oh"), "broken", "unexpected ZeroDivisionError: oh"),
    ],
)
async def test_a_failure_keeps_the_old_version_and_says_why(
    tmp_path: Path, error: Exception, reason: str, description: str
) -> None:
    engine = FakeEngine("1")
    repository, _ = await begun(folder(tmp_path, "1", "2"), engine)
    error.args = (str(error.args[0]).format(tmp_path),)
    engine.failures["2"] = error
    with pytest.raises(FailedChange, match=f"dates/2 cannot be served: {description}"):
        await repository.load("dates")
    assert states(repository) == {"1": "serving", "2": "failed"}
    [failed] = [each for each in repository.catalog.versions if each.version == "2"]
    assert (failed.reason, failed.description) == (reason, description)
    assert taken(engine) == {"1"}
    with pytest.raises(ModelNotFound, match=f"{description} \\({reason}\\)"):
        engine.fronts[1].lease("dates", "2")
    engine.failures.clear()
    await repository.load("dates")
    assert states(repository) == {"1": "unloaded", "2": "serving"}


HOSTILE = ["", ".", "..", "../outside", "/", "/etc", "dates/../dates", "dates\0", "DATES", "dates/", "*"]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_name_that_is_no_model_of_the_folder_is_not_found(tmp_path: Path, name: str) -> None:
    folder(tmp_path, "2", name="outside")
    engine = FakeEngine("1")
    repository, _ = await begun(folder(tmp_path / "models", "1", "2"), engine)
    for change in (repository.load(name, "2"), repository.load(name), repository.unload(name, "1")):
        with pytest.raises(ModelNotFound):
            await change
    assert states(repository) == {"1": "serving", "2": "unloaded"}


@pytest.mark.parametrize(
    "version", ["..", "../2", "/2", "02", "2/", "2\0", "２", "-1", "latest", "../../outside/2", "2/../3"]
)
async def test_a_version_that_is_no_folder_is_not_found(tmp_path: Path, version: str) -> None:
    folder(tmp_path, "2", name="outside")
    engine = FakeEngine("1")
    repository, _ = await begun(folder(tmp_path / "models", "1", "2", "3"), engine)
    for change in (repository.load("dates", version), repository.unload("dates", version)):
        with pytest.raises(ModelNotFound):
            await change
    with pytest.raises(ModelNotFound):
        await repository.set_alias("dates", "stable", version, 0.0)


async def test_a_link_out_of_the_models_folder_is_not_followed(tmp_path: Path) -> None:
    outside = folder(tmp_path, "2", name="outside") / "outside"
    models = folder(tmp_path / "models", "1")
    (models / "dates" / "2").symlink_to(outside / "2")
    (models / "others").symlink_to(outside)
    (models / "dates" / "3").symlink_to("1")
    engine = FakeEngine("1")
    repository, _ = await begun(models, engine)
    for name in ("dates", "others"):
        with pytest.raises(FailedChange, match=f"{name}/2 is a link out of the models folder"):
            await repository.load(name, "2")
    await repository.load("dates", "3")  # within it


async def test_an_alias_keeps_its_version(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, _ = await begun(folder(tmp_path, "1", "2", "3"), engine)
    await repository.set_alias("dates", "stable", "1", 90.0)
    await repository.load("dates", "2")
    await repository.set_alias("dates", "canary", "2", 10.0)
    assert [taken(engine, alias) for alias in ("stable", "canary")] == [{"1"}, {"2"}]
    both = {version for number in range(100) for version in taken(engine, "", str(number))}
    assert both == {"1", "2"}
    assert all(len(taken(engine, "", str(number))) == 1 for number in range(100))
    await repository.load("dates")  # the highest, which has no share
    assert states(repository) == {"1": "serving", "2": "serving", "3": "serving"}
    with pytest.raises(FailedChange, match="the alias 'canary' names dates/2"):
        await repository.unload("dates", "2")
    with pytest.raises(FailedChange, match="the alias 'canary' names dates/2"):
        await repository.unload("dates")
    assert taken(engine, "2") == {"2"}
    await repository.delete_alias("dates", "canary")
    await repository.unload("dates", "2")
    with pytest.raises(ModelNotFound):
        engine.fronts[1].lease("dates", "canary")


@pytest.mark.parametrize(
    ("alias", "percent", "field"),
    [
        ("../x", 1.0, "alias"),
        ("2", 1.0, "alias"),
        ("", 1.0, "alias"),
        ("x", -1.0, "traffic_percent"),
        ("x", 100.1, "traffic_percent"),
        ("x", float("nan"), "traffic_percent"),
        ("x", 60.0, "traffic_percent"),
    ],
)
async def test_a_wrong_alias_is_refused(tmp_path: Path, alias: str, percent: float, field: str) -> None:
    engine = FakeEngine("1")
    repository, _ = await begun(folder(tmp_path, "1"), engine)
    await repository.set_alias("dates", "stable", "1", 50.0)
    with pytest.raises(InvalidRequest) as refused:
        await repository.set_alias("dates", alias, "1", percent)
    assert [each.field for each in refused.value.violations] == [field]
    assert list(repository.catalog.aliases["dates"]) == ["stable"]
    await repository.set_alias("dates", "stable", "1", 100.0)  # its own share is not counted twice
    with pytest.raises(ModelNotFound):
        await repository.delete_alias("dates", "canary")


async def test_what_is_not_served_cannot_be_unloaded_or_named(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, _ = await begun(folder(tmp_path, "1", "2"), engine)
    for change in (
        repository.unload("dates", "2"),
        repository.unload("numbers"),
        repository.set_alias("dates", "canary", "2", 0.0),
    ):
        with pytest.raises(ModelNotFound, match="this server has: dates/1"):
            await change


async def test_the_last_version_can_be_unloaded_and_loaded_again(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, _ = await begun(folder(tmp_path, "1"), engine)
    await repository.unload("dates")
    assert states(repository) == {"1": "unloaded"}
    with pytest.raises(ModelNotFound, match="it was unloaded"):
        engine.fronts[0].lease("dates")
    await repository.load("dates")
    assert taken(engine) == {"1"}


async def test_a_change_goes_on_where_its_caller_leaves(tmp_path: Path) -> None:
    engine = FakeEngine("1")
    repository, _ = await begun(folder(tmp_path, "1", "2"), engine)
    with engine.fronts[0].lease("dates"):
        caller = asyncio.create_task(repository.load("dates"))
        while states(repository)["1"] != "draining":
            await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert not engine.unloaded
        assert taken(engine) == {"2"}
    await repository.load("dates")  # in its turn
    assert engine.unloaded == ["1"]


VERSIONS = st.sampled_from(["1", "2", "3", "4"])
CHANGES = st.one_of(
    st.tuples(st.just("load"), st.one_of(st.just(""), VERSIONS), st.booleans()),
    st.tuples(st.just("unload"), st.one_of(st.just(""), VERSIONS), st.just(False)),
    st.tuples(st.just("alias"), VERSIONS, st.booleans()),
    st.tuples(st.just("delete"), st.just(""), st.booleans()),
    st.tuples(st.just("lease"), st.one_of(st.just(""), VERSIONS), st.just(False)),
    st.tuples(st.just("return"), st.just(""), st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGES, max_size=25), st.sampled_from(["latest", "all"]))
def test_after_any_history_calls_are_answered_by_what_is_served(
    tmp_path_factory: pytest.TempPathFactory, history: Sequence[tuple[str, str, bool]], versions: str
) -> None:
    models = folder(tmp_path_factory.mktemp("models"), "1", "2", "3", "4")
    asyncio.run(_replay(models, history, versions))


async def _replay(models: Path, history: Sequence[tuple[str, str, bool]], versions: str) -> None:
    engine = FakeEngine("1")
    repository, shown = await begun(models, engine, versions)
    held: list[Lease] = []
    pending: set[asyncio.Task[None]] = set()

    def check() -> None:
        for lease in held:
            num_unloads = engine.unloaded.count(lease.model.version)
            assert num_unloads == unloads_before[lease], "a version was unloaded while a call held it"

    unloads_before: dict[Lease, int] = {}
    for what, version, flag in history:
        match what:
            case "load":
                engine.failures = {version or "4": BundleError("wrong answers")} if flag else {}
                pending.add(asyncio.create_task(repository.load("dates", version)))
            case "unload":
                pending.add(asyncio.create_task(repository.unload("dates", version)))
            case "alias":
                alias = "stable" if flag else "canary"
                pending.add(asyncio.create_task(repository.set_alias("dates", alias, version, 40.0)))
            case "delete":
                alias = "stable" if flag else "canary"
                pending.add(asyncio.create_task(repository.delete_alias("dates", alias)))
            case "lease":
                with contextlib.suppress(ModelNotFound):
                    lease = engine.fronts[len(held) % 2].lease("dates", version)
                    lease.__enter__()
                    held.append(lease)
                    unloads_before[lease] = engine.unloaded.count(lease.model.version)
            case "return":
                if held:
                    held.pop(0 if flag else -1).__exit__(None, None, None)
        for _ in range(12):
            await asyncio.sleep(0)
            check()
    for lease in held:
        lease.__exit__(None, None, None)
    outcomes = await asyncio.gather(*pending, return_exceptions=True)
    assert all(each is None or isinstance(each, DragomanError) for each in outcomes), outcomes
    serving = {version for version, state in states(repository).items() if state == "serving"}
    for front in engine.fronts:
        assert {model.version for model in front.models} == serving
    assert not {"loading", "draining"} & set(states(repository).values())
    aliases = repository.catalog.aliases.get("dates", {})
    assert all(alias.version in serving for alias in aliases.values())
    assert sum(alias.traffic_percent for alias in aliases.values()) <= 100
    # One version changes at a time, and one that fails was not served before.
    for earlier, later in itertools.pairwise(shown):
        changed = [
            (old, new)
            for old, new in zip(earlier.versions, later.versions, strict=True)
            if old.state is not new.state
        ]
        assert len(changed) <= 1
        if changed and changed[0][1].state is VersionState.FAILED:
            assert changed[0][0].state is VersionState.LOADING
