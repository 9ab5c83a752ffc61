"""The measures against cases worked out by hand, and the whole benchmark on a tiny run."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import translation_quality
from benchmarks.translation_quality import (
    honest_scores,
    moses_detokenizer,
    moses_tokenizer,
    tokenized_bleu,
)

from dragoman.model.recipe import load_recipe
from dragoman.model.run import Run, save_run
from dragoman.model.tokenizer import train_tokenizer
from dragoman.model.transformer import build_model

GERMAN = ["zwei hunde spielen im schnee .", "ein mann schläft .", "ein kind rennt .", "eine frau liest ."]
ENGLISH = ["two dogs play in the snow .", "a man 's dog sleeps .", "a child runs .", "a woman reads ."]


def test_tokenized_bleu_is_the_papers_by_hand() -> None:
    hypotheses = ["the cat sat on the mat .", "a dog runs"]
    references = ["the cat sat on a mat .", "a dog runs fast today"]
    # n-grams that match, of those written: 6 + 3 of 7 + 3, 4 + 2 of 6 + 2, 2 + 1 of 5 + 1, 1 of 4.
    precisions = 9 / 10, 6 / 8, 3 / 6, 1 / 4
    brevity_penalty = math.exp(1 - 12 / 10)
    expected = 100 * brevity_penalty * math.prod(precisions) ** 0.25
    score = tokenized_bleu(hypotheses, references)
    assert score.percent == pytest.approx(expected, abs=1e-9)
    assert score.percent == pytest.approx(44.126, abs=1e-3)
    assert "tok:none" in score.signature
    assert "case:lc" in score.signature


def test_tokenized_bleu_is_not_smoothed_and_takes_tokens_as_they_are() -> None:
    assert tokenized_bleu(["a b c d"], ["a b c x"]).percent == 0.0  # as multi-bleu.perl
    assert tokenized_bleu(["Do n't stop now !"], ["do n't stop now !"]).percent == pytest.approx(100.0)
    assert tokenized_bleu(["don 't stop now !"], ["do n't stop now !"]).percent < 100.0


def test_the_honest_measures_ignore_case_and_say_so() -> None:
    bleu, chrf = honest_scores(["the cat sat on the mat."], ["The cat sat on the mat."])
    assert bleu.percent == pytest.approx(100.0)
    assert chrf.percent == pytest.approx(100.0)
    assert "case:lc" in bleu.signature
    assert "tok:13a" in bleu.signature
    assert "case:lc" in chrf.signature


@pytest.mark.parametrize(
    ("raw", "tokenized"),
    [
        ("A boy sits on a woman's shoulders.", "a boy sits on a woman &apos;s shoulders ."),
        ("Two men, one in a T-shirt, dance.", "two men , one in a t-shirt , dance ."),
    ],
)
def test_text_is_brought_to_the_other_edition_and_back(raw: str, tokenized: str) -> None:
    assert moses_tokenizer("en")(raw) == tokenized
    assert moses_detokenizer("en")(tokenized) == raw.lower()


@pytest.mark.parametrize("tokenized", [True, False])
@pytest.mark.parametrize("test", [True, False])
def test_a_run_is_measured(
    tokenized: bool,
    test: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for split in ("train", "val", "test_2016_flickr"):
        for suffix in ("", ".lc.norm.tok"):
            for language, lines in (("de", GERMAN), ("en", ENGLISH)):
                (tmp_path / f"{split}{suffix}.{language}").write_text("\n".join(lines) + "\n")
    overrides = [
        "model.width=16",
        "model.num_heads=2",
        "model.max_target_tokens=16",
        "corpus.source=en",
        "corpus.target=de",
    ]
    recipe = load_recipe("multi30k", [*overrides, f"corpus.tokenized={str(tokenized).lower()}"])
    tokenizer = train_tokenizer(recipe.tokenizer, [*GERMAN, *ENGLISH], "translation")
    torch.manual_seed(1)
    model = build_model(recipe.dimensions(tokenizer.get_vocab_size())).eval()
    (tmp_path / "run").mkdir()
    save_run(Run(tmp_path / "run", model, tokenizer, recipe, 1, {}))

    arguments = [str(tmp_path / "run"), "--data", str(tmp_path), "--beam-size", "2", "--threads", "1"]
    arguments += ["--json", str(tmp_path / "figures.json"), *(["--test"] if test else [])]
    monkeypatch.setattr(sys, "argv", ["translation_quality.py", *arguments])
    translation_quality.main()
    output = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [score["name"] for score in figures["scores"]] == ["tokenized BLEU-4", "sacreBLEU", "chrF"]
    assert len(figures["hypotheses"]) == 4
    assert figures["split"] == ("test_2016_flickr" if test else "validation")
    assert figures["published_tokenized_bleu"] == (41.02 if test else None)
    assert "41.02" in output
    assert "tok:none" in output


def test_the_right_answers_measure_a_hundred() -> None:
    split = translation_quality.Split("validation", GERMAN, ENGLISH, ENGLISH)
    settings = load_recipe("multi30k", ["corpus.tokenized=true"]).corpus
    scores = translation_quality.measure(ENGLISH, split, settings)  # type: ignore[arg-type]
    assert scores[0].percent == pytest.approx(100.0)
