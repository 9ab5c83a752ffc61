"""Greedy decoding and scoring against the model's whole forward pass, without a cache."""

import math

import pytest
import torch

from dragoman.model.decoding import Hypothesis, greedy_decode, score
from dragoman.model.tokenizer import BEGIN_ID, END_ID, WITHOUT_TEXT
from dragoman.model.transformer import Dimensions, LanguageModel, TranslationModel, build_model

Model = TranslationModel | LanguageModel

SOURCES = [[5, 6, 7, END_ID], [9, END_ID], [4, 5, 8, 8, 8, END_ID], [9, END_ID]]
PROMPTS = [[BEGIN_ID], [BEGIN_ID, 5, 6, 7], [BEGIN_ID, 9, 9], [BEGIN_ID, 7, 5, 6]]


@pytest.fixture(params=["translation", "generation"])
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(6)
    translates = request.param == "translation"
    dims = Dimensions(request.param, 11, 32, 4, 2, 48, 2 * translates, 2, 12 * translates, 12)
    model = build_model(dims).eval()
    for parameter in model.parameters():  # an untrained tied model repeats its input for ever
        parameter.data.add_(0.6 * torch.randn_like(parameter))
    model.embedding.token.weight.data[END_ID] *= 1.5  # with these, some rows end early and some never
    return model


def inputs_of(model: Model) -> list[list[int]]:
    return SOURCES if isinstance(model, TranslationModel) else PROMPTS


@torch.inference_mode()
def next_logits(model: Model, given: list[int], output: list[int]) -> torch.Tensor:
    if isinstance(model, TranslationModel):
        logits = model(torch.tensor([given]), torch.tensor([[BEGIN_ID, *output]]))
    else:
        logits = model(torch.tensor([[*given, *output]]))
    last: torch.Tensor = logits[0, -1]
    return last


def decode_naively(model: Model, given: list[int], max_tokens: int, min_tokens: int) -> Hypothesis:
    output: list[int] = []
    log_probability, margins = 0.0, []
    while len(output) < max_tokens and END_ID not in output:
        logits = next_logits(model, given, output)
        permitted = logits.clone()
        permitted[list(WITHOUT_TEXT)] = -math.inf
        if len(output) < min_tokens:
            permitted[END_ID] = -math.inf
        best, second = permitted.sort(descending=True).values[:2].tolist()
        output.append(int(permitted.argmax()))
        log_probability += float(logits.log_softmax(-1)[output[-1]])
        margins.append(best - second)
    return Hypothesis(output, log_probability, margins)


@pytest.mark.parametrize("min_tokens", [0, 3])
def test_greedy_decoding_equals_one_forward_pass_a_token(model: Model, min_tokens: int) -> None:
    inputs = inputs_of(model)
    hypotheses = greedy_decode(model, inputs, max_tokens=7, min_tokens=min_tokens)
    for given, hypothesis in zip(inputs, hypotheses, strict=True):
        expected = decode_naively(model, given, 7, min_tokens)
        assert hypothesis.token_ids == expected.token_ids
        assert hypothesis.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
        assert hypothesis.margins == pytest.approx(expected.margins, abs=1e-4)


def test_the_end_token_ends_a_row_and_not_its_neighbours(model: Model) -> None:
    hypotheses = greedy_decode(model, inputs_of(model), max_tokens=12)
    lengths = {len(hypothesis.token_ids) for hypothesis in hypotheses}
    for hypothesis in hypotheses:
        assert END_ID not in hypothesis.token_ids[:-1]
        assert hypothesis.finished == (hypothesis.token_ids[-1] == END_ID)
        assert len(hypothesis.margins) == len(hypothesis.token_ids)
    assert len(lengths) > 1, "the example should hold rows of different lengths"


def test_at_least_min_tokens_come_before_the_end(model: Model) -> None:
    eager = [len(h.token_ids) for h in greedy_decode(model, inputs_of(model), 9)]
    patient = [h.token_ids for h in greedy_decode(model, inputs_of(model), 9, min_tokens=5)]
    assert min(eager) <= 5, "the example should hold a row that ends early by itself"
    assert all(END_ID not in tokens[:5] for tokens in patient)


def test_scores_are_the_log_probabilities_of_decoding(model: Model) -> None:
    inputs = inputs_of(model)
    hypotheses = greedy_decode(model, inputs, max_tokens=6)
    scores = score(model, inputs, [hypothesis.token_ids for hypothesis in hypotheses])
    for hypothesis, token_scores in zip(hypotheses, scores, strict=True):
        assert len(token_scores) == len(hypothesis.token_ids)
        assert sum(token_scores) == pytest.approx(hypothesis.log_probability, abs=1e-4)


def test_scores_of_any_text_follow_the_chain_rule(model: Model) -> None:
    given, output = inputs_of(model)[1], [4, 10, END_ID]
    [scores] = score(model, [given], [output])
    expected = [
        float(next_logits(model, given, output[:position]).log_softmax(-1)[token])
        for position, token in enumerate(output)
    ]
    assert scores == pytest.approx(expected, abs=1e-5)


def test_the_models_own_limit_holds(model: Model) -> None:
    for given, hypothesis in zip(
        inputs_of(model), greedy_decode(model, inputs_of(model), 1_000, 1_000), strict=True
    ):
        used = 0 if isinstance(model, TranslationModel) else len(given)
        limit = 13 if isinstance(model, TranslationModel) else 12  # the end token needs no place of its own
        assert used + len(hypothesis.token_ids) == limit


def test_an_answer_does_not_depend_on_its_neighbours(model: Model) -> None:
    together = greedy_decode(model, inputs_of(model), 8)
    for given, hypothesis in zip(inputs_of(model), together, strict=True):
        [alone] = greedy_decode(model, [given], 8)
        assert alone.token_ids == hypothesis.token_ids


def test_no_inputs_give_no_answers(model: Model) -> None:
    assert greedy_decode(model, [], 5) == []
    assert score(model, [], []) == []


@pytest.mark.parametrize(("bad", "message"), [([], "no token"), ([4] * 13, "13 tokens is over .* limit 12")])
def test_inputs_that_do_not_fit_are_refused(model: Model, bad: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        greedy_decode(model, [bad], 5)
    with pytest.raises(ValueError, match=message):
        score(model, [bad], [[4]])


def test_outputs_that_do_not_fit_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="over the model's limit 12"):
        score(model, inputs_of(model)[:1], [[4] * 14])
