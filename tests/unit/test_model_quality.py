"""Quality figures against values worked out by hand."""

import math

import pytest
import torch

from model.quality import bits_per_byte, bleu, chrf, exact_match
from model.recipe import TokenizerSettings
from model.tokenizer import BEGIN_ID, END_ID, train_tokenizer
from model.transformer import Dimensions, LanguageModel, build_model


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
