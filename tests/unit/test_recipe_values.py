"""Whatever a value of a recipe is, the command ends in one line or trains: no value is a traceback.

Each key of each section, with values that people and programs get wrong: other types, empty texts, folders, files that
cannot be read, numbers without an end, no numbers.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from dragoman.cli.main import main
from dragoman.common.errors import SettingsError
from dragoman.common.settings_reference import sections_of
from dragoman.model.recipe import Recipe
from dragoman.model.training.reproduction import as_toml

TSV = {"kind": "tsv", "train": "pairs.tsv", "validation_share": 0.2, "test_share": 0.2}
BASE: dict[str, Any] = {
    "name": "values",
    "task": "translation",
    "corpus": TSV,
    "tokenizer": {"kind": "bpe", "vocabulary_size": 60},
    "model": {
        "width": 16,
        "num_heads": 2,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "max_source_tokens": 16,
        "max_target_tokens": 16,
    },
    "training": {"max_steps": 1, "batch_tokens": 64, "num_threads": 1, "num_quality_examples": 4},
}
CORPORA: list[dict[str, Any]] = [
    TSV,
    {"kind": "parallel", "train": {"source": "a", "target": "b"}},
    {"kind": "jsonl", "train": "pairs.jsonl"},
    {"kind": "parquet", "train": "pairs.parquet"},
    {"kind": "multi30k", "folder": "."},
]

MULTI30K = [
    (f"{split}.{language}", side)
    for split in ("train", "val", "test_2016_flickr")
    for language, side in (("de", "source"), ("en", "target"))
]

NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    2**31,
    2**63,
    -(2**70),
    10**30,
    0.5,
    -0.5,
    1e308,
    1e-308,
    float("nan"),
    float("inf"),
]
TEXTS = [
    "",
    ".",
    "..",
    "/",
    "-",
    "*",
    "**x",
    "pairs.tsv",
    "folder",
    "pipe",
    "nothing",
    "~",
    "a\0b",
    "é" * 300,
    "auto",
]
OTHERS: list[Any] = [True, False, None, [], [1], ["", "."], {}, {"a": 1}, {"source": ".", "target": ""}]
VALUES = [*NUMBERS, *TEXTS, *OTHERS]


def keys() -> Iterator[tuple[str, str]]:
    """Each section and key there is; those above all sections have an empty section."""
    for section in sections_of(Recipe):
        if not section.name.startswith("corpus"):
            yield from ((section.name, key.name) for key in section.settings)


def corpus_keys(corpus: dict[str, Any]) -> list[str]:
    [section] = (
        part for part in sections_of(Recipe) if part.form == corpus["kind"] and part.name == "corpus"
    )
    return [key.name for key in section.settings if key.name != "kind"]


def changed(section: str, key: str, value: Any, base: dict[str, Any] | None = None) -> dict[str, Any]:
    recipe: dict[str, Any] = json.loads(json.dumps(base or BASE))
    (recipe.setdefault(section, {}) if section else recipe)[key] = value
    return recipe


CASES = [(section, key, BASE) for section, key in keys()] + [
    ("corpus", key, {**BASE, "corpus": corpus}) for corpus in CORPORA for key in corpus_keys(corpus)
]


@pytest.mark.parametrize(
    ("section", "key", "base"), CASES, ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_value_is_taken_or_refused_in_one_line(section: str, key: str, base: dict[str, Any]) -> None:
    for value in VALUES:
        said = refusal(changed(section, key, value, base))
        assert "\n" not in said
        assert len(said) < 500


def refusal(recipe: dict[str, Any]) -> str:
    """Why a recipe is refused, or nothing."""
    try:
        Recipe.load(recipe, source="test")
    except SettingsError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    lines = [(f"word {n} {n * 7919 % 97}", f"WORD {n}") for n in range(60)]
    (folder / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in lines))
    (folder / "pairs.jsonl").write_text(
        "".join(
            json.dumps({"source": source, "target": target, "text": source}) + "\n"
            for source, target in lines
        )
    )
    columns = dict(zip(("source", "target"), map(list, zip(*lines, strict=True)), strict=True))
    parquet.write_table(pa.table({**columns, "text": columns["source"]}), folder / "pairs.parquet")
    for name, side in (("a", "source"), ("b", "target"), *MULTI30K):
        (folder / name).write_text("".join(f"{text}\n" for text in columns[side]))
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    return folder


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=st.sampled_from(CASES), value=st.sampled_from(VALUES))
def test_a_recipe_that_is_taken_trains_or_ends_in_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, str, dict[str, Any]],
    value: Any,
) -> None:
    section, key, base = case
    try:
        recipe = Recipe.load(changed(section, key, value, base), source="test")
    except SettingsError:
        return  # the test above has looked at it
    monkeypatch.setattr("sys.stdin", None)  # for "-"
    monkeypatch.setattr("dragoman.model.training.train.set_threads", lambda *_: 1)
    path = folder / "values.toml"
    path.write_text(as_toml(recipe), encoding="utf-8")
    code = main(["train", str(path), "--out", str(folder / "run"), "--data", str(folder), "--restart"])
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code in {0, 1, 2}
    assert len(errors) == (1 if code else 0), err
    assert "Traceback" not in err
