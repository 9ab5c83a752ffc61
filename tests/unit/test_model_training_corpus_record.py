"""A run goes on with the corpus that it began with, or is told to take another."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.trees import tree
from tests.unit.capitals import RESUME, capitals, recipe, stop_after, undisturbed, weights

from dragoman.common.errors import UsageError
from dragoman.common.files import sha256_of
from dragoman.model.corpora.corpus import Pair
from dragoman.model.corpora.load import load_corpus
from dragoman.model.corpora.sources import SourceFile
from dragoman.model.errors import CorpusError
from dragoman.model.recipe import Recipe
from dragoman.model.run import load_run
from dragoman.model.training import corpus_record, session
from dragoman.model.training.corpus_record import CorpusRecord, changes_since_training, in_words
from dragoman.model.training.data import encode_corpus
from dragoman.model.training.state import StateStore
from dragoman.model.training.train import Beginning, train

pytestmark = pytest.mark.usefixtures("one_core", "no_charts")

ACCEPT = Beginning(resume=True, accept_changes=True)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return capitals(tmp_path)


def change(path: Path) -> None:
    """Other targets: as many pairs, as many bytes, and the same time of writing."""
    status = path.stat()
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("".join(f"{source}\t{target[::-1]}\n" for source, target in lines))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


def test_a_file_that_changed_but_kept_its_size_and_time_is_refused_by_name(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, recipe(settings), tmp_path / "run", num_steps=10)
    change(tmp_path / "pairs.tsv")
    before = tree(tmp_path / "run")
    with pytest.raises(
        UsageError, match=r"pairs\.tsv has changed \(of the same size\); .*--accept-changes"
    ) as refused:
        train(recipe(settings), tmp_path / "run", beginning=RESUME, show_progress=False)
    assert "\n" not in str(refused.value)
    after = tree(tmp_path / "run")
    logs = {name for name in before.keys() | after.keys() if "tensorboard" in name or name == "metrics.jsonl"}
    assert {name: after[name] for name in after if name not in logs} == {
        name: before[name] for name in before if name not in logs
    }


def test_an_accepted_change_is_learned_from_the_file_as_it_is_now(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No shard of the old file is read, and no checkpoint counts that was validated on it."""
    out = tmp_path / "run"
    stop_after(monkeypatch, recipe(settings), out, num_steps=15)
    found = StateStore(out / "state").load()
    assert found is not None
    assert {kept.step for kept in found[0].progress.kept} == {7, 14}
    change(tmp_path / "pairs.tsv")
    read: list[str] = []

    def watched(corpus: Any, *arguments: Any, **named: Any) -> Any:
        encoded = encode_corpus(corpus, *arguments, **named)
        read.append(encoded.fingerprint)
        return encoded

    monkeypatch.setattr(session, "encode_corpus", watched)
    train(recipe(settings), out, beginning=ACCEPT)
    assert "changed: pairs.tsv has changed (of the same size)" in capsys.readouterr().err
    assert read[0] != found[0].progress.corpus
    assert load_run(out).step == 40
    last = StateStore(out / "state").load()
    assert last is not None
    assert last[0].progress.corpus == read[0]
    assert min(kept.step for kept in last[0].progress.kept) > 15


def test_a_run_that_accepted_a_change_is_resumed_without_being_told_again(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    stop_after(monkeypatch, recipe(settings), out, num_steps=10)
    change(tmp_path / "pairs.tsv")
    longer = recipe(settings, max_steps=20)
    train(longer, out, beginning=ACCEPT, show_progress=False)
    with pytest.raises(UsageError, match="is finished, there is nothing to resume"):
        train(longer, out, beginning=RESUME, show_progress=False)
    train(recipe(settings, max_steps=25), out, beginning=ACCEPT, show_progress=False)
    assert load_run(out).step == 25


def test_a_file_that_was_only_copied_or_touched_is_the_same(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, recipe(settings), tmp_path / "run", num_steps=10)
    content = (tmp_path / "pairs.tsv").read_bytes()
    (tmp_path / "pairs.tsv").unlink()
    (tmp_path / "pairs.tsv").write_bytes(content)
    os.utime(tmp_path / "pairs.tsv", (1, 1))
    train(recipe(settings), tmp_path / "run", beginning=RESUME, show_progress=False)
    assert weights(tmp_path / "run") == undisturbed()


def test_a_corpus_through_standard_input_must_be_piped_again(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["corpus"]["train"] = "-"
    content = (tmp_path / "pairs.tsv").read_bytes()

    def pipe(piped: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))

    pipe(content)
    train(recipe(settings), tmp_path / "whole", show_progress=False)
    pipe(content)
    stop_after(monkeypatch, recipe(settings), tmp_path / "run", num_steps=10)
    change(tmp_path / "pairs.tsv")
    pipe((tmp_path / "pairs.tsv").read_bytes())
    with pytest.raises(UsageError, match=r"standard input has changed \(of the same size\)"):
        train(recipe(settings), tmp_path / "run", beginning=RESUME, show_progress=False)
    pipe(content)
    train(recipe(settings), tmp_path / "run", beginning=RESUME, show_progress=False)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize("split", ["validation", "synthetic_pairs"])
def test_every_file_of_a_corpus_counts(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    if split == "validation":
        settings["corpus"]["validation"] = name = "other.tsv"
        (tmp_path / name).write_text("abc\tABC\nfed\tFED\n")
    else:
        settings["corpus"]["synthetic_pairs"] = [name := "other.jsonl"]
        (tmp_path / name).write_text('{"source": "zz", "target": "ZZ"}\n')
    stop_after(monkeypatch, recipe(settings), tmp_path / "run", num_steps=10)
    path = tmp_path / name
    path.write_text(path.read_text().replace("fed", "cab").replace("zz", "yy"))
    with pytest.raises(UsageError, match=rf"{name} has changed \(of the same size\)"):
        train(recipe(settings), tmp_path / "run", beginning=RESUME, show_progress=False)


def test_a_file_more_or_less_under_a_pattern_is_named(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["corpus"]["train"] = "*.tsv"
    lines = (tmp_path / "pairs.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "pairs.tsv").write_text("".join(lines[10:]))
    (tmp_path / "a.tsv").write_text("".join(lines[:10]))
    stop_after(monkeypatch, recipe(settings), tmp_path / "run", num_steps=10)
    (tmp_path / "a.tsv").rename(tmp_path / "b.tsv")
    with pytest.raises(UsageError, match=r"a\.tsv is no longer read; b\.tsv is new;"):
        train(recipe(settings), tmp_path / "run", beginning=RESUME, show_progress=False)


def test_a_file_that_is_still_being_written_is_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beside_a_writer(*arguments: Any, **named: Any) -> Any:
        with (tmp_path / "pairs.tsv").open("a") as file:
            file.write("zzz\tZZZ\n")
        return encode_corpus(*arguments, **named)

    monkeypatch.setattr(session, "encode_corpus", beside_a_writer)
    with pytest.raises(CorpusError, match=r"while it was read, pairs\.tsv has changed \(.* bytes, now .*\)"):
        train(recipe(settings), tmp_path / "run", show_progress=False)


def test_a_file_that_was_written_between_reading_and_recording_is_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record would be that of a file that nothing was learned from."""

    def beside_a_writer(*arguments: Any, **named: Any) -> Any:
        corpus = load_corpus(*arguments, **named)
        with (tmp_path / "pairs.tsv").open("a") as file:
            file.write("zzz\tZZZ\n")
        return corpus

    monkeypatch.setattr(session, "load_corpus", beside_a_writer)
    with pytest.raises(CorpusError, match=r"while it was read, pairs\.tsv has changed: begin again"):
        train(recipe(settings), tmp_path / "run", show_progress=False)


def test_only_a_file_with_another_size_or_time_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [SourceFile(tmp_path / name, name) for name in ("a", "b", "bad \udcff")]
    for file in files:
        file.path.write_text(file.path.name[0])
    record = CorpusRecord.of(files)
    (tmp_path / "b").write_text("c")
    hashed = []

    def hashes(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(corpus_record, "sha256_of", hashes)
    now = CorpusRecord.of(files, record)
    assert hashed == ["b"]
    assert record.changes(now) == ["b has changed (of the same size)"]
    assert record.digest() != now.digest()
    assert CorpusRecord.model_validate_json(record.model_dump_json()) == record, (
        "a name that is not UTF-8, too"
    )


def test_a_made_corpus_has_no_files_and_the_others_have_all(tmp_path: Path) -> None:
    made = Recipe.load({**capitals(tmp_path), "corpus": {"kind": "dates", "num_train": 10}}, source="test")
    assert load_corpus(made).files == ()
    stdlib = load_corpus(_generation(tmp_path, {"kind": "stdlib"}))
    assert len(stdlib.files) == sum(map(len, (stdlib.train, stdlib.validation, stdlib.test)))
    shakespeare = tmp_path / "shakespeare"
    shakespeare.mkdir()
    (shakespeare / "input.txt").write_text("To be, or not to be\n" * 20)
    read = load_corpus(_generation(tmp_path, {"kind": "shakespeare", "folder": str(shakespeare)}))
    assert [file.name for file in read.files] == ["input.txt"]
    multi30k = tmp_path / "multi30k"
    multi30k.mkdir()
    for name in ("train", "val", "test_2016_flickr"):
        for language in ("de", "en"):
            (multi30k / f"{name}.{language}").write_text(f"{name}\n")
    (multi30k / "made.jsonl").write_text('{"source": "zz", "target": "ZZ"}\n')
    corpus = {"kind": "multi30k", "folder": str(multi30k), "synthetic_pairs": ["made.jsonl"]}
    pairs = load_corpus(Recipe.load({**capitals(tmp_path), "corpus": corpus}, source="test"))
    assert sorted(file.name for file in pairs.files) == sorted(path.name for path in multi30k.iterdir())
    assert Pair("zz", "ZZ") in list(pairs.train)


def _generation(tmp_path: Path, corpus: dict[str, Any]) -> Recipe:
    values = {**capitals(tmp_path), "task": "generation", "corpus": corpus}
    values["tokenizer"] = {"kind": "character", "vocabulary_size": 60}
    values["model"] = {"width": 16, "num_heads": 2, "num_decoder_layers": 1, "max_target_tokens": 8}
    return Recipe.load(values, source="test")


def test_a_run_of_an_earlier_release_has_no_record(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, recipe(settings), tmp_path / "run", num_steps=10)
    (tmp_path / "run" / "corpus.json").unlink()
    files = [SourceFile(tmp_path / "pairs.tsv", "pairs.tsv")]
    assert changes_since_training(tmp_path / "run", files) == []
    change(tmp_path / "pairs.tsv")
    with pytest.raises(UsageError, match=r"the corpus is not the one that the run in .* was begun with"):
        train(recipe(settings), tmp_path / "run", beginning=RESUME, show_progress=False)


def test_of_many_changes_a_few_are_told() -> None:
    changes = [f"{number}.py is new" for number in range(9)]
    assert in_words(changes[:2]) == "0.py is new; 1.py is new"
    assert in_words(changes).endswith("4.py is new; and 4 other files")
