"""What is seen of a model while it trains: attention entropy against a computation by hand, samples, BLEU."""

import math
from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from dragoman.model.attention import CrossAttention, SelfAttention, observe_weights
from dragoman.model.batching import Batch, Pairs, Stream, pad_right
from dragoman.model.corpora.corpus import Corpus, Pair
from dragoman.model.decoding import Hypothesis
from dragoman.model.quality import Comparison
from dragoman.model.recipe import TokenizerSettings
from dragoman.model.tokenizer import BEGIN_ID, END_ID, train_tokenizer
from dragoman.model.training.insight import (
    Examiner,
    attention_entropies,
    first_bytes,
    median_batch,
    sample_continuations,
    sample_translations,
)
from dragoman.model.training.records import Sample
from dragoman.model.transformer import Dimensions, LanguageModel, TranslationModel, build_model

SOURCES = [[4, 5, 6, 7, END_ID], [8, END_ID], [9, 4, END_ID]]
TARGETS = [[4, 5, 6], [7, 8, 9, 4, 5, 6], []]


def translator(**changes: object) -> TranslationModel:
    torch.manual_seed(0)
    dims = Dimensions("translation", 12, 32, 4, 2, 32, 2, 3, 24, 24, **changes)  # type: ignore[arg-type]
    model = build_model(dims)
    assert isinstance(model, TranslationModel)
    return model


def generator(vocabulary_size: int = 12) -> LanguageModel:
    torch.manual_seed(0)
    model = build_model(Dimensions("generation", vocabulary_size, 32, 4, 4, 32, 0, 2, 0, 16))
    assert isinstance(model, LanguageModel)
    return model


def attend_evenly(model: nn.Module) -> None:
    """Keys of zero give each score the value 0."""
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            packed = module.query_key_value if isinstance(module, SelfAttention) else module.key_value
            nn.init.zeros_(packed.weight)
            nn.init.zeros_(packed.bias)


def batch() -> Batch:
    return Pairs(SOURCES, TARGETS).batch(torch.arange(3).numpy())


def test_even_attention_has_the_entropy_of_the_number_of_keys() -> None:
    model = translator(dropout=0.5, attention_dropout=0.5)
    attend_evenly(model)
    entropies = attention_entropies(model, batch())
    assert set(entropies) == {
        f"attention_entropy/{name}"
        for name in (
            "encoder_0",
            "encoder_1",
            "decoder_0",
            "decoder_1",
            "decoder_2",
            "cross_0",
            "cross_1",
            "cross_2",
        )
    }
    lengths = [len(source) for source in SOURCES]
    encoder = sum(length * math.log(length) for length in lengths) / sum(lengths)
    num_queries = [len(target) + 1 for target in TARGETS]
    decoder = sum(math.log(seen) for number in num_queries for seen in range(1, number + 1)) / sum(
        num_queries
    )
    cross = sum(n * math.log(length) for n, length in zip(num_queries, lengths, strict=True)) / sum(
        num_queries
    )
    for name, entropy in entropies.items():
        kind = name.removeprefix("attention_entropy/").split("_")[0]
        assert entropy == pytest.approx(
            {"encoder": encoder, "decoder": decoder, "cross": cross}[kind], rel=1e-5
        )
    assert model.training, "the mode is as it was"


def test_sharp_attention_has_none() -> None:
    """Queries that equal their keys, far apart from the others: all weight is on one key."""
    model = generator()
    layer = model.decoder_layers[0].self_attention
    with torch.no_grad():
        layer.query_key_value.weight.mul_(1e4)
    entropies = attention_entropies(model, Stream([[4, 5, 6, 7, 8, 9]], 16).batch(torch.tensor([0]).numpy()))
    assert set(entropies) == {"attention_entropy/decoder_0", "attention_entropy/decoder_1"}
    assert entropies["attention_entropy/decoder_0"] < 0.01 < entropies["attention_entropy/decoder_1"]


def test_padding_changes_no_entropy() -> None:
    """Rows one by one, weighted by their queries, give what they give together."""
    model = translator()
    together = attention_entropies(model, batch())
    alone = [
        attention_entropies(model, Pairs([s], [t]).batch(torch.tensor([0]).numpy()))
        for s, t in zip(SOURCES, TARGETS, strict=True)
    ]
    for name, entropy in together.items():
        counts = [len(s) if "encoder" in name else len(t) + 1 for s, t in zip(SOURCES, TARGETS, strict=True)]
        expected = sum(n * one[name] for n, one in zip(counts, alone, strict=True)) / sum(counts)
        assert entropy == pytest.approx(expected, rel=1e-4)


def test_a_language_model_sees_only_what_is_behind() -> None:
    model = generator()
    attend_evenly(model)
    stream = Stream([[4, 5, 6, 7, 8, 9, 4, 5, 6, 7]], 8)  # windows of 8 and 3, the second one padded
    entropies = attention_entropies(model, stream.batch(torch.tensor([0, 8]).numpy()))
    expected = sum(math.log(n) for length in (8, 3) for n in range(1, length + 1)) / 11
    assert entropies["attention_entropy/decoder_1"] == pytest.approx(expected, rel=1e-5)


def test_watching_changes_no_result_and_ends() -> None:
    model = translator().eval()
    ids = pad_right(SOURCES), pad_right([[BEGIN_ID, *target] for target in TARGETS])
    before = model(*ids)
    seen: list[Tensor] = []
    attention = model.decoder_layers[1].cross_attention
    with observe_weights(attention, seen.append):
        torch.testing.assert_close(model(*ids), before)
    model(*ids)
    [weights] = seen
    assert weights.shape == (3, 4, 7, 5)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, 7))
    with pytest.raises(ZeroDivisionError), observe_weights(attention, seen.append):
        raise ZeroDivisionError
    assert attention.observer is None


def test_the_batch_looked_at_is_of_middling_length() -> None:
    sources = [[4] * length for length in range(1, 22)]
    seen = median_batch(Pairs(sources, sources), 22)
    assert seen.source_ids is not None
    assert 8 <= seen.source_ids.shape[1] <= 16


def copying(texts: Sequence[str]) -> tuple[TranslationModel, Tokenizer]:
    tokenizer = train_tokenizer(TokenizerSettings(kind="character", vocabulary_size=32), texts, "translation")
    torch.manual_seed(0)
    model = build_model(Dimensions("translation", tokenizer.get_vocab_size(), 32, 4, 4, 32, 1, 1, 8, 8))
    assert isinstance(model, TranslationModel)
    return model.eval(), tokenizer


PAIRS = [Pair("ab", "BA"), Pair("ba", "AB"), Pair("abab" * 10, "long")]


def test_samples_are_the_models_own_translations(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = copying(["abAB"])
    limits = []

    def decode(model: TranslationModel, inputs: list[list[int]], max_tokens: int) -> list[Hypothesis]:
        limits.append(max_tokens)
        return [Hypothesis([*reversed(ids[:-1]), END_ID], 0.0, []) for ids in inputs]

    monkeypatch.setattr("dragoman.model.training.measure.greedy_decode", decode)
    samples = sample_translations(model, tokenizer, PAIRS, max_tokens=3)
    assert samples[:2] == [Sample("ab", "BA", "ba"), Sample("ba", "AB", "ab")]
    assert samples[2].hypothesis == "", "a source over the limit has no answer, as when served"
    sample_translations(model, tokenizer, PAIRS)
    assert limits == [3, 9]


def test_a_translation_is_compared_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # 13a parts the full stop from the word, so half the tokens agree; as they stand, none does.
    assert worth("a b c d.", "a b c d .", monkeypatch) == {"validation_sample_bleu": pytest.approx(100.0)}
    [bleu] = worth("a b c d.", "a b c d .", monkeypatch, Comparison("none")).values()
    assert bleu < 80


def test_the_worth_of_single_words_is_no_bleu(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLEU counts runs of four words: of such targets it is 0 however good the model is."""
    assert worth("AB", "AB", monkeypatch) == {
        "validation_sample_exact_match": 100.0,
        "validation_sample_chrf": pytest.approx(100.0),
    }


def worth(
    answer: str, reference: str, monkeypatch: pytest.MonkeyPatch, comparison: Comparison | None = None
) -> dict[str, float]:
    model, tokenizer = copying(["abAB"])
    monkeypatch.setattr("dragoman.model.training.insight.translate_texts", lambda *_: [answer])
    pair = Pair("x", reference)
    corpus = Corpus("test", train=[pair], validation=[pair], test=[])
    examples = Pairs([[4, END_ID]], [[6]])
    examine = Examiner(
        model, tokenizer, corpus, examples, show_samples=lambda *_: None, comparison=comparison
    )
    return {name: value for name, value in examine(1).items() if "/" not in name}


def test_equal_inputs_are_one_sample() -> None:
    model, tokenizer = copying(["abAB"])
    pairs = [Pair("ab", "BA")] * 6 + [Pair("ba", "AB"), Pair("ab", "AB")]
    corpus = Corpus("test", train=PAIRS, validation=pairs, test=[])
    shown: list[Sample] = []
    examples = Pairs([[4, END_ID]], [[6]])
    Examiner(model, tokenizer, corpus, examples, show_samples=lambda _, samples: shown.extend(samples))(1)
    assert sorted(sample.source for sample in shown) == ["ab", "ba"]


def test_equal_prompts_are_one_sample() -> None:
    tokenizer = train_tokenizer(TokenizerSettings(kind="character"), ["abcdefgh"], "generation")
    model = generator(tokenizer.get_vocab_size()).eval()
    documents = ["abcdefgh", "abcdefghab", "abch", "hgfedcba"]
    samples = sample_continuations(model, tokenizer, documents, 3, 4)
    assert [(sample.source, sample.reference) for sample in samples] == [("abc", "defg"), ("hgf", "edcb")]


def test_a_look_that_takes_too_long_is_at_fewer_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = copying(["abAB"])
    now_s = 100.0
    asked: list[int] = []

    def translate(_: object, __: object, sources: Sequence[str]) -> list[str]:
        nonlocal now_s
        now_s += 0.1 * len(sources)
        asked.append(len(sources))
        return ["BA"] * len(sources)

    monkeypatch.setattr("time.monotonic", lambda: now_s)
    monkeypatch.setattr("dragoman.model.training.insight.translate_texts", translate)
    monkeypatch.setattr("dragoman.model.training.insight.sample_translations", lambda *_: [])
    pairs = [Pair(f"{number:03}", "BA") for number in range(200)]
    corpus = Corpus("test", train=pairs, validation=pairs, test=[])
    examine = Examiner(model, tokenizer, corpus, Pairs([[4, END_ID]], [[6]]), show_samples=lambda *_: None)
    examine(1, end_s=now_s + 5.0)
    assert 8 <= sum(asked) <= 50
    assert now_s <= 105.0
    num_first = sum(asked)
    asked.clear()
    examine(2, end_s=now_s + 500.0)
    assert sum(asked) == num_first, "validations compare"


def test_a_continuation_follows_its_prompt() -> None:
    tokenizer = train_tokenizer(TokenizerSettings(kind="character"), ["abcdefgh"], "generation")
    model = generator(tokenizer.get_vocab_size()).eval()
    samples = sample_continuations(model, tokenizer, ["abcdefgh" * 5, "ab"], 3, 4)
    assert [(sample.source, sample.reference) for sample in samples] == [("abc", "defg")]
    assert len(samples[0].hypothesis) <= 4
    [sample] = sample_continuations(model, tokenizer, ["abcdefgh" * 5], 10, 40)
    assert sample.reference == "cdefg", "a context of 16 leaves 5 after the begin token and 10 others"
    with pytest.raises(ValueError, match="over the model's limit 16"):
        sample_continuations(model, tokenizer, ["abcdefgh" * 5], 16, 4)


def test_bits_per_byte_reads_only_the_start() -> None:
    assert first_bytes(["abc", "déf", "ghi"], 5) == ["abc", "d"], "a character is whole or left out"
    assert first_bytes(["abc"], 5) == ["abc"]


def test_a_look_at_a_language_model_reads_what_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(TokenizerSettings(kind="character"), ["abcdefgh"], "generation")
    model = generator(tokenizer.get_vocab_size())
    corpus = Corpus("test", train=["abc"], validation=["abcdefgh" * 1000] * 5, test=[])
    now_s = 100.0
    read: list[int] = []

    def bits(_: object, __: object, documents: Sequence[str]) -> float:
        nonlocal now_s
        read.append(sum(map(len, documents)))
        now_s += 1e-3 * read[-1]
        return 1.5

    monkeypatch.setattr("time.monotonic", lambda: now_s)
    for module in ("measure", "insight"):
        monkeypatch.setattr(f"dragoman.model.training.{module}.bits_per_byte", bits)
    examine = Examiner(model, tokenizer, corpus, Stream([[4, 5, 6]], 16), show_samples=lambda *_: None)
    examine(1, end_s=now_s + 30.0)
    assert now_s <= 130.0
    assert 8_000 <= read[-1] <= 26_000
    measured = read[-1]
    examine(2, end_s=now_s + 30.0)
    assert read[-1] <= measured


def test_an_examiner_looks_at_the_same_each_time() -> None:
    model, tokenizer = copying(["abAB"])
    model.train()
    corpus = Corpus("test", train=PAIRS, validation=PAIRS[:2], test=[])
    validation = Pairs([[4, END_ID], [5, 4, END_ID]], [[6], [7, 6]])
    shown: list[tuple[int, Sequence[Sample]]] = []
    examine = Examiner(model, tokenizer, corpus, validation, show_samples=lambda *given: shown.append(given))
    figures = examine(7)
    assert figures == examine(14)
    assert {
        "validation_sample_exact_match",
        "attention_entropy/encoder_0",
        "attention_entropy/cross_0",
    } <= set(figures)
    assert [step for step, _ in shown] == [7, 14]
    assert shown[0][1] == shown[1][1]
    assert [sample.source for sample in shown[0][1]] == ["ab", "ba"]
    assert model.training


def test_an_examiner_measures_a_language_model_in_bits() -> None:
    tokenizer = train_tokenizer(TokenizerSettings(kind="character"), ["abcdefgh"], "generation")
    model = generator(tokenizer.get_vocab_size())
    corpus = Corpus("test", train=["abc"], validation=["abcdefgh" * 9], test=[])
    shown: list[Sample] = []
    examine = Examiner(
        model,
        tokenizer,
        corpus,
        Stream([[4, 5, 6]], 16),
        show_samples=lambda _, samples: shown.extend(samples),
    )
    figures = examine(1)
    assert figures["validation_sample_bits_per_byte"] > 1
    assert "attention_entropy/decoder_0" in figures
    assert [sample.source for sample in shown] == ["abcdefgh"]
