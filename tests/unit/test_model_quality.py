"""Quality figures against values worked out by hand."""

import math

import pytest
import sacrebleu
import torch

from dragoman.model.quality import (
    Comparison,
    bits_per_byte,
    bleu,
    chrf,
    exact_match,
    headline,
    signatures,
    translation_figures,
)
from dragoman.model.recipe import Recipe, TokenizerSettings, load_recipe
from dragoman.model.tokenizer import BEGIN_ID, END_ID, train_tokenizer
from dragoman.model.transformer import Dimensions, LanguageModel, build_model


def test_exact_match_is_a_percentage() -> None:
    assert exact_match(["a", "b", "c", "d"], ["a", "b", "C", "d "]) == 50.0


def test_bleu_and_chrf_of_equal_texts_are_100() -> None:
    sentences = ["a man rides a bicycle down the street", "two dogs play in the snow"]
    assert bleu(sentences, sentences) == pytest.approx(100.0)
    assert chrf(sentences, sentences) == pytest.approx(100.0)
    assert bleu(["cats"] * 2, sentences) == 0.0


def test_bleu_by_hand() -> None:
    """Papineni et al. 2002: geometric mean of 4/5, 3/4, 2/3 and 1/2; as long as the reference."""
    precisions = [4 / 5, 3 / 4, 2 / 3, 1 / 2]
    expected = 100 * math.prod(precisions) ** 0.25
    assert bleu(["the cat sat down slowly"], ["the cat sat down quickly"]) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [exact_match, bleu, chrf])
def test_texts_without_a_partner_are_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(ValueError, match="1 hypotheses for 2 references"):
        measure(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="0 hypotheses for 0 references"):
        measure([], [])


@torch.no_grad()
def test_bits_per_byte_follow_the_windows_the_model_reads() -> None:
    documents = ["naïve café", "ok", "zéro " * 7]
    settings = TokenizerSettings(kind="character", vocabulary_size=64)
    tokenizer = train_tokenizer(settings, documents, "generation")
    torch.manual_seed(0)
    model = build_model(Dimensions("generation", tokenizer.get_vocab_size(), 16, 2, 2, 16, 0, 1, 0, 8)).eval()
    assert isinstance(model, LanguageModel)

    stream = []
    for document in documents:
        stream += [*tokenizer.encode(document, add_special_tokens=False).ids, END_ID]
    bits = 0.0
    for start in range(0, len(stream), 8):
        window = stream[start : start + 8]
        log_probabilities = model(torch.tensor([[BEGIN_ID, *window[:-1]]])).log_softmax(-1)[0]
        bits -= sum(float(log_probabilities[i, token]) for i, token in enumerate(window)) / math.log(2)
    num_bytes = sum(len(document.encode("utf-8")) for document in documents)
    assert num_bytes > sum(map(len, documents)), "the example should hold characters of several bytes"
    measured = bits_per_byte(model, tokenizer, documents, batch_tokens=24)
    assert measured == pytest.approx(bits / num_bytes, rel=1e-5)


def test_bits_per_byte_of_nothing_are_refused() -> None:
    tokenizer = train_tokenizer(TokenizerSettings(kind="character", vocabulary_size=8), ["ab"], "generation")
    model = build_model(Dimensions("generation", 6, 16, 2, 2, 16, 0, 1, 0, 8))
    assert isinstance(model, LanguageModel)
    with pytest.raises(ValueError, match="no byte of text"):
        bits_per_byte(model, tokenizer, [""])


def test_no_figure_is_above_100_percent() -> None:
    """The geometric mean of four precisions of 100 % is 100.00000000000004 in floating point."""
    assert sacrebleu.corpus_bleu(["a b c d"], [["a b c d"]]).score > 100.0
    assert set(translation_figures(["a b c d"], ["a b c d"]).values()) == {100.0}


def test_bleu_is_left_out_where_no_reference_has_four_words() -> None:
    words = ["hund", "katze"]
    assert translation_figures(["hund", "kater"], words) == {
        "exact_match": 50.0,
        "chrf": chrf(["hund", "kater"], words),
    }
    assert "bleu" in translation_figures(words, ["hund", "ein hund im schnee"])
    # A date is one word between spaces and five to BLEU, which cuts at its hyphens.
    assert translation_figures(["2020-05-06"], ["2020-05-06"])["bleu"] == 100.0
    assert "bleu" not in translation_figures(["2020-05-06"], ["2020-05-06"], Comparison("none"))


@pytest.mark.parametrize(
    ("references", "measures"),
    [
        (["two dogs play in the snow", "a man rides a bicycle"], ("bleu",)),
        (["hund", "katze"], ("exact_match", "chrf")),
        (["2020-05-06"], ("exact_match", "chrf")),
        (["日本語の文章。", "漢字かな交じりのテキスト"], ("exact_match", "chrf")),
        (["hund", "two dogs play in the snow"], ("bleu",)),
        ([], ("exact_match", "chrf")),
    ],
)
def test_the_headline_fits_the_references(references: list[str], measures: tuple[str, ...]) -> None:
    assert headline("translation", references) == measures
    assert headline("generation", references) == ("bits_per_byte",)


def test_case_is_ignored_where_the_recipe_says_so() -> None:
    hypotheses, references = ["the dog is in the snow"], ["The Dog is in the Snow"]
    assert translation_figures(hypotheses, references)["exact_match"] == 0.0
    assert set(translation_figures(hypotheses, references, Comparison("13a", True)).values()) == {100.0}


def test_signatures_name_what_was_measured() -> None:
    told = signatures(Comparison("none", True))
    assert "case:lc" in told["bleu"]
    assert "tok:none" in told["bleu"]
    assert "case:lc" in told["chrf"]
    assert "tok:13a" in signatures(Comparison())["bleu"]
    assert "case:mixed" in signatures(Comparison())["chrf"]


def test_a_recipe_says_how_its_translations_are_compared() -> None:
    multi30k = load_recipe("multi30k")
    assert Comparison.of(multi30k) == ("none", False)
    assert Comparison.of(load_recipe("multi30k", ["corpus.tokenized=false"])) == ("13a", False)
    assert Comparison.of(load_recipe("multi30k", ["tokenizer.lowercase=true"])) == ("none", True)
    overrides = ["quality.bleu_tokenization='char'", "quality.ignore_case=false", "tokenizer.lowercase=true"]
    assert Comparison.of(load_recipe("multi30k", overrides)) == ("char", False)
    # Recipes of runs and bundles from before have no such section.
    recorded = multi30k.model_dump(mode="json")
    del recorded["quality"]
    assert Recipe.load(recorded, source="test") == multi30k
