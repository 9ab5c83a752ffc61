"""Greedy decoding and scoring: the reference of every export, against the slowest way to do the same."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch
from torch import nn

from model.decoding import greedy_decode, score
from model.tokenizer import BEGIN_ID, END_ID
from model.transformer import Dimensions, LanguageModel, TranslationModel, build_model

VOCABULARY, MAX_SOURCE, MAX_TARGET = 20, 9, 12


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(4)
    yield
    torch.set_num_threads(before)


def translator(norm: str = "pre", num_kv_heads: int = 2) -> TranslationModel:
    model = sharpened(
        Dimensions(
            task="translation",
            vocabulary_size=VOCABULARY,
            width=16,
            num_heads=2,
            num_kv_heads=num_kv_heads,
            feed_forward_width=32,
            num_encoder_layers=2,
            num_decoder_layers=2,
            max_source_tokens=MAX_SOURCE,
            max_target_tokens=MAX_TARGET,
            norm="pre" if norm == "pre" else "post",
        )
    )
    assert isinstance(model, TranslationModel)
    return model


def language_model() -> LanguageModel:
    model = sharpened(
        Dimensions(
            task="generation",
            vocabulary_size=VOCABULARY,
            width=16,
            num_heads=2,
            num_kv_heads=1,
            feed_forward_width=32,
            num_encoder_layers=0,
            num_decoder_layers=2,
            max_source_tokens=0,
            max_target_tokens=MAX_TARGET,
            activation="swiglu",
        )
    )
    assert isinstance(model, LanguageModel)
    return model


def sharpened(dims: Dimensions) -> TranslationModel | LanguageModel:
    """A model whose answers differ in tokens and in length: fresh weights repeat one token and never end."""
    model = build_model(dims).eval()
    inputs = [[*torch.randint(4, VOCABULARY, (length,)).tolist()] for length in range(1, MAX_SOURCE)] * 8
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(4)
                module.bias.normal_(std=0.3)
        answers = [answer.token_ids for answer in greedy_decode(model, inputs, MAX_TARGET)]
        # A token that stands late in some answers and in others not at all becomes the end token.
        late = Counter(token for answer in answers for token in set(answer[3:]) - set(answer[:3]))
        token = max((token for token, count in late.items() if token > END_ID), key=late.__getitem__)
        weight = model.embedding.token.weight
        weight[[END_ID, token]] = weight[[token, END_ID]]
    return model


def sources(*lengths: int) -> list[list[int]]:
    return [[*torch.randint(4, VOCABULARY, (length - 1,)).tolist(), END_ID] for length in lengths]


def prompts(*lengths: int) -> list[list[int]]:
    return [[BEGIN_ID, *torch.randint(4, VOCABULARY, (length - 1,)).tolist()] for length in lengths]


def model_with_inputs(
    kind: str, lengths: Iterable[int]
) -> tuple[TranslationModel | LanguageModel, list[list[int]]]:
    cut = [1 + length % MAX_SOURCE for length in lengths]
    if kind == "language model":
        return language_model(), prompts(*cut)
    return translator() if kind == "pre-norm" else translator("post", num_kv_heads=1), sources(*cut)


@torch.inference_mode()
def naive(
    model: TranslationModel | LanguageModel, given: Sequence[int], max_tokens: int, min_tokens: int = 0
) -> tuple[list[int], float, list[float]]:
    """One row, the whole sequence through the whole model for each new token."""
    translates = isinstance(model, TranslationModel)
    read = [BEGIN_ID] if translates else list(given)
    tokens: list[int] = []
    margins: list[float] = []
    log_probability = 0.0
    room = MAX_TARGET + 1 if translates else MAX_TARGET - len(given)
    while len(tokens) < min(max_tokens, room) and END_ID not in tokens:
        target = torch.tensor([[*read, *tokens]])
        logits = (model(torch.tensor([list(given)]), target) if translates else model(target))[0, -1]
        log_probabilities = logits.log_softmax(dim=-1).tolist()
        ranked = sorted(range(VOCABULARY), key=lambda token: -logits[token].item())
        if len(tokens) < min_tokens:
            ranked.remove(END_ID)
        margins.append((logits[ranked[0]] - logits[ranked[1]]).item())
        log_probability += log_probabilities[ranked[0]]
        tokens.append(ranked[0])
    return tokens, log_probability, margins


@pytest.mark.parametrize("min_tokens", [0, 3])
@pytest.mark.parametrize("max_tokens", [1, 6, 100])
@pytest.mark.parametrize("kind", ["pre-norm", "post-norm, one key head", "language model"])
def test_greedy_equals_recomputing_everything(kind: str, max_tokens: int, min_tokens: int) -> None:
    model, inputs = model_with_inputs(kind, (0, 1, 1, 8, 2, 8, 3, 4, 5))
    hypotheses = greedy_decode(model, inputs, max_tokens, min_tokens)
    assert len(hypotheses) == len(inputs)
    for given, hypothesis in zip(inputs, hypotheses, strict=True):
        tokens, log_probability, margins = naive(model, given, max_tokens, min_tokens)
        assert hypothesis.token_ids == tokens
        assert hypothesis.log_probability == pytest.approx(log_probability, abs=1e-4)
        assert hypothesis.margins == pytest.approx(margins, abs=1e-4)
        assert hypothesis.finished == (END_ID in tokens)


@pytest.mark.parametrize("kind", ["pre-norm", "post-norm, one key head", "language model"])
def test_rows_that_end_early_are_cut_and_others_go_on(kind: str) -> None:
    """Guards the test above: its models must give answers of different lengths, ended and not."""
    model, inputs = model_with_inputs(kind, range(60))
    hypotheses = greedy_decode(model, inputs, 6)
    assert len({len(hypothesis.token_ids) for hypothesis in hypotheses}) > 2
    assert {hypothesis.finished for hypothesis in hypotheses} == {True, False}
    for hypothesis in hypotheses:
        assert END_ID not in hypothesis.token_ids[:-1]
        assert len(hypothesis.margins) == len(hypothesis.token_ids)


def test_more_rows_than_a_batch_keep_their_order() -> None:
    model = translator()
    inputs = sources(*[1 + (i * 7) % MAX_SOURCE for i in range(300)])
    hypotheses = greedy_decode(model, inputs, 4)
    for index in (0, 1, 128, 129, 299):
        assert hypotheses[index].token_ids == naive(model, inputs[index], 4)[0]


def test_a_prompt_that_fills_the_context_leaves_no_room() -> None:
    [hypothesis] = greedy_decode(language_model(), prompts(MAX_TARGET), 5)
    assert hypothesis.token_ids == []
    assert hypothesis.log_probability == 0
    assert not hypothesis.finished


def test_no_input_no_answer() -> None:
    assert greedy_decode(translator(), [], 5) == []
    assert score(translator(), [], []) == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[]], "an input holds no token"),
        ([[4] * (MAX_SOURCE + 1)], "an input of 10 tokens is over .* limit 9"),
    ],
)
def test_wrong_inputs_are_named(inputs: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        greedy_decode(translator(), inputs, 5)
    with pytest.raises(ValueError, match=message):
        score(translator(), inputs, [[5]])


@torch.inference_mode()
@pytest.mark.parametrize("task", ["translation", "generation"])
def test_score_is_the_log_softmax_of_forward(task: str) -> None:
    model = translator() if task == "translation" else language_model()
    inputs = sources(3, 7, 1, 5) if task == "translation" else prompts(3, 7, 1, 5)
    outputs = [[5, 6, END_ID], [], [9] * 5, [END_ID]]
    scores = score(model, inputs, outputs)
    assert [len(row) for row in scores] == [3, 0, 5, 1]
    for given, output, row in zip(inputs, outputs, scores, strict=True):
        prefix = [BEGIN_ID] if task == "translation" else given
        target = torch.tensor([[*prefix, *output]])
        logits = model(torch.tensor([given]), target) if task == "translation" else model(target)
        log_probabilities = logits[0].log_softmax(dim=-1)
        expected = [log_probabilities[len(prefix) - 1 + i, token].item() for i, token in enumerate(output)]
        assert row == pytest.approx(expected, abs=1e-5)


def test_the_score_of_a_greedy_answer_is_its_log_probability() -> None:
    model, inputs = translator(), sources(2, 9, 4)
    hypotheses = greedy_decode(model, inputs, 100)
    scores = score(model, inputs, [hypothesis.token_ids for hypothesis in hypotheses])
    for hypothesis, row in zip(hypotheses, scores, strict=True):
        assert math.fsum(row) == pytest.approx(hypothesis.log_probability, abs=1e-4)


@pytest.mark.parametrize("kind", ["translation", "generation"])
def test_as_many_tokens_as_the_model_takes_can_be_scored_and_no_more(kind: str) -> None:
    model = translator() if kind == "translation" else language_model()
    given, room = ([5], MAX_TARGET + 1) if kind == "translation" else ([BEGIN_ID], MAX_TARGET)
    [row] = score(model, [given], [[7] * room])
    assert len(row) == room
    with pytest.raises(ValueError, match=f"{room + 1} tokens to score, over the model's limit {MAX_TARGET}"):
        score(model, [given], [[7] * (room + 1)])
