"""Which version a call gets, and how long a version is held."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.server.errors import ModelNotFound
from dragoman.server.models.catalog import Catalog
from dragoman.server.models.registry import Registry
from dragoman.server.models.routes import Alias, Routes, alias_problem

NUM_KEYS = 4000


def model(version: str, name: str = "dates") -> Any:
    return SimpleNamespace(name=name, version=version)


def registry(*versions: str) -> Registry:
    return Registry([model(version) for version in versions])


def aliases(of_dates: dict[str, Alias]) -> Catalog:
    return Catalog(aliases={"dates": of_dates})


def version_of(models: Registry, asked: str = "", sticky_key: str | None = None) -> str:
    with models.lease("dates", asked, sticky_key) as lease:
        return lease.model.version


def test_without_a_version_the_highest_number_is_taken() -> None:
    models = registry("2", "10", "9")
    assert version_of(models) == "10"
    assert version_of(models, "9") == "9"
    assert [each.version for each in models.models] == ["2", "9", "10"]


def test_what_does_not_fit_is_not_found_and_says_what_there_is() -> None:
    models = registry("1", "2")
    models.show(aliases({"canary": Alias("3")}))
    for name, version in (("dates", "3"), ("dates", "canary"), ("dates", "stable"), ("numbers", "")):
        with pytest.raises(ModelNotFound, match="this server has: dates/1, dates/2"):
            models.lease(name, version)


def test_an_alias_names_a_version_and_follows_a_change() -> None:
    models = registry("1", "2")
    models.show(aliases({"stable": Alias("1")}))
    assert version_of(models, "stable") == "1"
    assert version_of(models) == "2"
    models.show(aliases({"stable": Alias("2")}))
    assert version_of(models, "stable") == "2"


def test_an_alias_with_a_share_gets_its_part_and_a_key_always_the_same_version() -> None:
    models = registry("1", "2")
    models.show(aliases({"canary": Alias("2", 10.0)}))
    for keys in ([f"user-{number}" for number in range(NUM_KEYS)], [None] * NUM_KEYS):
        num_canary = sum(version_of(models, "", key) == "2" for key in keys)
        deviation = math.sqrt(NUM_KEYS * 0.1 * 0.9)
        assert abs(num_canary - 0.1 * NUM_KEYS) < 6 * deviation
    again = registry("1", "2")  # as another front has it
    again.show(aliases({"canary": Alias("2", 10.0)}))
    for number in range(200):
        assert len({version_of(each, "", f"user-{number}") for each in (models, models, again)}) == 1


def test_a_larger_share_keeps_those_that_had_the_version() -> None:
    models = registry("1", "2")
    keys = [f"user-{number}" for number in range(500)]

    def canary(percent: float) -> set[str]:
        models.show(aliases({"canary": Alias("2", percent)}))
        return {key for key in keys if version_of(models, "", key) == "2"}

    assert canary(0.0) == set(keys)  # no share: the highest version gets all
    assert canary(10.0) < canary(30.0) < canary(100.0) == set(keys)


def test_the_share_of_a_version_that_is_not_served_goes_to_the_others() -> None:
    models = registry("1")
    models.show(aliases({"canary": Alias("2", 100.0)}))
    assert version_of(models) == "1"


@pytest.mark.parametrize("name", ["stable", "canary", "v2.1-b_c", "A" * 64])
def test_names_of_aliases(name: str) -> None:
    assert alias_problem(name) is None


@pytest.mark.parametrize("name", ["", "1", "01", ".", "..", "a/b", "a\0", "a b", "é", "-a", "A" * 65, "a\n"])
def test_names_that_no_alias_has(name: str) -> None:
    assert alias_problem(name)


async def test_a_removed_version_ends_when_its_last_lease_is_returned() -> None:
    models = registry("1", "2")
    gone: list[str] = []
    models.when_removed.append(lambda each: gone.append(each.version))
    with models.lease("dates", "2") as lease:
        removal = asyncio.create_task(models.remove("dates", "2"))
        await asyncio.sleep(0)
        assert version_of(models) == "1"  # new calls go to what is left
        with pytest.raises(ModelNotFound):
            models.lease("dates", "2")
        assert not removal.done()
        assert not gone
        assert lease.model.version == "2"
    await removal
    assert gone == ["2"]
    await models.remove("dates", "2")  # harmless
    await models.remove("dates", "1")
    assert "dates" not in models


async def test_a_version_that_comes_back_while_the_old_one_is_held_is_another_one() -> None:
    models = registry("1")
    old = models.lease("dates", "1")
    with old:
        removal = asyncio.create_task(models.remove("dates", "1"))
        await asyncio.sleep(0)
        added = model("1")
        models.add(added)
        with models.lease("dates", "1") as lease:
            assert lease.model is added
        assert not removal.done()
    await removal
    assert version_of(models) == "1"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True),
    st.dictionaries(
        st.sampled_from(["stable", "canary", "old"]),
        st.tuples(st.integers(1, 6), st.sampled_from([0.0, 10.0, 33.3])),
    ),
    st.sampled_from(["", "1", "3", "stable", "old"]),
    st.one_of(st.none(), st.text()),
)
def test_what_is_chosen_is_served(
    served: list[int], aliases: dict[str, tuple[int, float]], asked: str, key: str | None
) -> None:
    versions = list(map(str, served))
    routes = Routes({name: Alias(str(version), share) for name, (version, share) in aliases.items()})
    chosen = routes.choose(asked, versions, "dates", key)
    if chosen is None:
        assert asked
        assert asked not in versions
    else:
        assert chosen in versions
