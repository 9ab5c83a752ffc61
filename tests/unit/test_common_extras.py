"""The extras of the distribution, and the modules that they install."""

import sys
from importlib.metadata import packages_distributions

import pytest
from packaging.utils import canonicalize_name
from tests.distributions import PROJECT, requirements_of

from dragoman.common.errors import MissingExtraError
from dragoman.common.extras import EXTRAS, require_extra


@pytest.mark.parametrize("extra", ["files", "serve", "tracing", "train"])
def test_every_package_of_an_extra_is_looked_for(extra: str) -> None:
    base = {canonicalize_name(each.name) for each in requirements_of()}
    named = {canonicalize_name(each.name) for each in requirements_of(extra)} - base
    homes = packages_distributions()
    modules = {module: {canonicalize_name(name) for name in homes[module]} for module in EXTRAS[extra]}
    assert all(names & named for names in modules.values()), "a module that the extra does not install"
    assert set().union(*modules.values()) >= named, "a package whose module is not looked for"
    assert len(set(EXTRAS[extra])) == len(EXTRAS[extra])


def test_the_extras_are_those_of_the_project() -> None:
    assert {*EXTRAS, "dev"} == set(PROJECT["optional-dependencies"])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra("train")
    monkeypatch.setitem(EXTRAS, "train", (*EXTRAS["train"], "no_such_module"))
    with pytest.raises(MissingExtraError) as caught:
        require_extra("train")
    assert (
        str(caught.value)
        == "this needs no_such_module, which is not installed: pip install 'dragoman[train]'"
    )
    assert caught.value.name == "no_such_module"


def test_no_module_is_imported_to_look_for_it() -> None:
    before = set(sys.modules)
    require_extra("train")
    assert set(sys.modules) - before <= {"google", "google.protobuf"}
