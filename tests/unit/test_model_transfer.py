"""Starting from another run: its weights, its tokenizer or a new one."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.capitals import RESUME, KilledError, weights

from dragoman.common.errors import UsageError
from dragoman.model.errors import RunError
from dragoman.model.recipe import Recipe
from dragoman.model.run import load_run
from dragoman.model.tokenizer import SPECIAL_TOKENS, train_tokenizer
from dragoman.model.training import session
from dragoman.model.training.train import Beginning, train
from dragoman.model.transfer import start_from
from dragoman.model.transformer import build_model

pytestmark = pytest.mark.usefixtures("one_core", "no_charts")


def recipe(folder: Path, words: list[str], **changes: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "pairs.tsv").write_text("".join(f"{word}\t{word.upper()}\n" for word in words))
    settings: dict[str, Any] = {
        "name": "capitals",
        "task": "translation",
        "corpus": {"kind": "tsv", "train": "pairs.tsv", "validation_share": 0.1, "folder": str(folder)},
        "tokenizer": {"kind": "character"},
        "model": {
            "width": 16,
            "num_heads": 2,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "max_source_tokens": 8,
            "max_target_tokens": 8,
            "dropout": 0.0,
        },
        "training": {"max_steps": 150, "batch_tokens": 128, "max_learning_rate": 1e-2, "warmup_steps": 5},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        settings[section] |= {key: value}
    return Recipe.load(settings, source="test")


@pytest.fixture(scope="module")
def words() -> list[str]:
    return [a + b + c for a in "abcde" for b in "abcde" for c in "abcdex"]


@pytest.fixture(scope="module")
def teacher(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    train(recipe(folder / "data", words), folder / "run", show_progress=False)
    return folder / "run"


def test_it_goes_on_from_where_the_other_was(teacher: Path, words: list[str], tmp_path: Path) -> None:
    before = load_run(teacher).metrics["validation_loss"]
    one_step = {"training__max_steps": 1, "training__max_learning_rate": 1e-6}
    chosen = recipe(tmp_path / "data", words, **one_step)
    cold = train(chosen, tmp_path / "cold", show_progress=False)
    warm = train(chosen, tmp_path / "warm", beginning=Beginning(init=teacher), show_progress=False)
    assert warm.metrics["validation_loss"] < before + 0.2 < cold.metrics["validation_loss"] - 1.0
    kept = (tmp_path / "warm/tokenizer.json").read_bytes()
    assert kept == (teacher / "tokenizer.json").read_bytes()


def test_with_a_new_tokenizer_common_tokens_keep_their_rows(
    teacher: Path, words: list[str], tmp_path: Path
) -> None:
    run = load_run(teacher)
    bpe = recipe(
        tmp_path / "data", [*words, "fab", "fad"] * 2, tokenizer__kind="bpe", tokenizer__vocabulary_size=30
    )
    tokenizer = train_tokenizer(
        bpe.tokenizer, [f"{word} {word.upper()}" for word in [*words, "fab"]], bpe.task
    )
    model = build_model(bpe.dimensions(tokenizer.get_vocab_size()))
    num_new = start_from(model, tokenizer, run)
    ours, theirs = model.embedding.token.weight.detach(), run.model.embedding.token.weight.detach()
    old, new = run.tokenizer.get_vocab(), tokenizer.get_vocab()
    common = old.keys() & new.keys()
    assert {*SPECIAL_TOKENS, "a", "E"} <= common
    for token in common:
        torch.testing.assert_close(ours[new[token]], theirs[old[token]], atol=0, rtol=0)
    assert num_new == len(new) - len(common) > 0
    merged = next(token for token in new if token not in old and len(token.strip("▁")) == 2)
    pieces = [theirs[old[letter]] for letter in merged.strip("▁")]
    torch.testing.assert_close(ours[new[merged]], torch.stack(pieces).mean(dim=0))
    torch.testing.assert_close(
        model.decoder_layers[0].feed_forward.expand.weight,
        run.model.decoder_layers[0].feed_forward.expand.weight,
    )


def test_the_command_line_trains_a_new_tokenizer_where_asked(
    teacher: Path, words: list[str], tmp_path: Path
) -> None:
    chosen = recipe(tmp_path / "data", [word.replace("a", "z") for word in words], training__max_steps=2)
    beginning = Beginning(init=teacher, new_tokenizer=True)
    train(chosen, tmp_path / "run", beginning=beginning, show_progress=False)
    assert "z" in load_run(tmp_path / "run").tokenizer.get_vocab()
    assert "z" not in load_run(teacher).tokenizer.get_vocab()


@pytest.mark.parametrize("new_tokenizer", [False, True])
def test_resumed_before_the_first_state_it_starts_from_the_same_run(
    teacher: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_tokenizer: bool
) -> None:
    """`--resume` goes without `--init`: the run itself has to know what it was begun with."""
    chosen = recipe(tmp_path / "data", words, training__max_steps=2)
    start = tmp_path / os.fsdecode(b"first run \xff")
    shutil.copytree(teacher, start)
    beginning = Beginning(init=start, new_tokenizer=new_tokenizer)
    train(chosen, tmp_path / "whole", beginning=beginning, show_progress=False)

    def killed(*_: Any, **__: Any) -> Any:
        raise KilledError

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(session, "encode_corpus", killed)
        train(chosen, out, beginning=beginning, show_progress=False)
    train(chosen, out, beginning=RESUME, show_progress=False)
    assert weights(out) == weights(tmp_path / "whole")


def test_another_shape_is_refused_with_the_setting(teacher: Path, words: list[str], tmp_path: Path) -> None:
    wider = recipe(tmp_path / "data", words, model__width=32)
    with pytest.raises(RunError, match="cannot be started from: its width is 16, not 32"):
        train(wider, tmp_path / "run", beginning=Beginning(init=teacher), show_progress=False)


def test_a_run_folder_whose_name_is_not_text_is_refused(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"run \xff")
    with pytest.raises(UsageError, match="is not UTF-8"):
        train(recipe(tmp_path / "data", words), out, show_progress=False)
    assert not out.exists()


def test_a_folder_that_is_no_run_is_refused(words: list[str], tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "data", words)
    with pytest.raises(UsageError, match="no such folder"):
        train(chosen, tmp_path / "run", beginning=Beginning(init=tmp_path / "none"), show_progress=False)
    assert not (tmp_path / "run").exists(), "nothing is touched before it is known that it can begin"
