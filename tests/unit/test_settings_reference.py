"""The reference of all keys: complete, true, and current in the documentation."""

import tomllib
from pathlib import Path

import pytest
from pydantic import Field
from tools.generate_configuration_page import configuration_page

from dragoman.cli.main import main
from dragoman.common.settings import Settings
from dragoman.common.settings_reference import as_toml, sections_of
from dragoman.model.recipe import Recipe
from dragoman.server.config import ServerSettings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("settings", [ServerSettings, Recipe])
def test_every_key_has_a_meaning(settings: type[Settings]) -> None:
    keys = [(section, key) for section in sections_of(settings) for key in section.settings]
    assert len(keys) > 20
    assert [f"{section.name}.{key.name}" for section, key in keys if not key.meaning.endswith(".")] == []
    assert [section.name for section in sections_of(settings) if not section.meaning] == []


def test_the_file_without_its_comment_signs_is_the_default_configuration() -> None:
    shown = as_toml(sections_of(ServerSettings))
    keys = [line.removeprefix("# ") for line in shown.splitlines() if line.startswith("# ") and " = " in line]
    lines = [
        line.removeprefix("# ") if line.removeprefix("# ") in keys else line for line in shown.splitlines()
    ]
    uncommented = "\n".join(line for line in lines if not line.startswith("#") and " = ..." not in line)
    values = tomllib.loads(uncommented)
    assert len(values["engine"]) > 5
    assert ServerSettings.load(values, source="the reference") == ServerSettings()


def test_the_file_as_it_is_is_a_configuration() -> None:
    values = tomllib.loads(as_toml(sections_of(ServerSettings)))
    assert ServerSettings.load(values, source="the reference") == ServerSettings()


def test_a_union_of_sections_gives_each_of_its_forms() -> None:
    corpora = [section for section in sections_of(Recipe) if section.name == "corpus"]
    assert {"dates", "parallel", "tsv", "jsonl", "parquet", "text"} <= {section.form for section in corpora}
    [tsv] = (section for section in corpora if section.form == "tsv")
    assert tsv.settings[0].name == "kind"
    assert {"train", "source_column", "validation_share"} <= {key.name for key in tsv.settings}


def test_bounds_choices_and_defaults_are_said() -> None:
    class Part(Settings):
        """A part."""

        count: int = Field(default=3, ge=1, le=2000)
        """A count."""
        share: float = Field(ge=0.0, lt=1.0)
        """A share."""
        name: str | None = None
        """A name."""

    class Whole(Settings):
        """The whole."""

        part: Part
        """The part."""

    [section] = sections_of(Whole)
    said = {key.name: (key.values, key.default, key.is_required) for key in section.settings}
    assert said == {
        "count": ("a whole number from 1 to 2,000", "3", False),
        "share": ("a number from 0 below 1", None, True),
        "name": ("text", None, False),
    }


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == configuration_page(), "run `make settings`"


def test_the_command_prints_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "server", "engine"]) == 0
    shown = capsys.readouterr().out
    assert "[engine]" in shown
    assert "[server]" not in shown
    assert "# slots_per_lane = 32" in shown


def test_the_command_prints_one_kind_of_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "recipe", "corpus", "--kind", "tsv"]) == 0
    shown = capsys.readouterr().out
    assert 'kind = "tsv"' in shown
    assert "# source_column = 0" in shown
    assert shown.count("[corpus]") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["server", "engin"],
            "server has no section 'engin': it has server, models, engine, admission, security, logging, tracing",
        ),
        (["recipe", "--kind", "csv"], "--kind 'csv' is no kind of corpus: it is one of dates,"),
    ],
)
def test_what_there_is_not_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *arguments]) == 2
    assert said in capsys.readouterr().err
