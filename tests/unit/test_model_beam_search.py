"""Beam search against greedy decoding, against scoring, and against trying every sequence there is."""

import itertools

import pytest
import torch

from dragoman.model.beam_search import BeamHypothesis, beam_search
from dragoman.model.decoding import greedy_decode, score
from dragoman.model.tokenizer import BEGIN_ID, END_ID, WITHOUT_TEXT
from dragoman.model.transformer import Dimensions, LanguageModel, TranslationModel, build_model

Model = TranslationModel | LanguageModel

VOCABULARY_SIZE = 11


def make_model(task: str, vocabulary_size: int, seed: int = 6) -> Model:
    torch.manual_seed(seed)
    translates = task == "translation"
    dims = Dimensions(task, vocabulary_size, 32, 4, 2, 48, 2 * translates, 2, 12 * translates, 12)  # type: ignore[arg-type]
    model = build_model(dims).eval()
    for parameter in model.parameters():  # an untrained tied model repeats its input for ever
        parameter.data.add_(0.6 * torch.randn_like(parameter))
    model.embedding.token.weight.data[END_ID] *= 1.5  # with these, some rows end early and some never
    return model


@pytest.fixture(params=["translation", "generation"])
def model(request: pytest.FixtureRequest) -> Model:
    return make_model(request.param, VOCABULARY_SIZE)


def make_inputs(model: Model, number: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(0, 7, (number,), generator=generator).tolist()
    texts = [torch.randint(4, VOCABULARY_SIZE, (length,), generator=generator).tolist() for length in lengths]
    if isinstance(model, TranslationModel):
        return [[*text, END_ID] for text in texts]
    return [[BEGIN_ID, *text] for text in texts]


def best_of_all(model: Model, given: list[int], max_tokens: int, penalty: float) -> list[BeamHypothesis]:
    """Every sequence that ends within `max_tokens`, best first."""
    tokens = [token for token in range(model.dims.vocabulary_size) if token not in {END_ID, *WITHOUT_TEXT}]
    outputs = [
        [*prefix, END_ID]
        for length in range(max_tokens)
        for prefix in itertools.product(tokens, repeat=length)
    ]
    totals = [sum(scores) for scores in score(model, [given] * len(outputs), outputs)]
    hypotheses = [
        BeamHypothesis(output, total, total / len(output) ** penalty)
        for output, total in zip(outputs, totals, strict=True)
    ]
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)


def test_one_beam_without_penalty_is_greedy_decoding(model: Model) -> None:
    inputs = make_inputs(model, 64)
    greedy = greedy_decode(model, inputs, 9)
    found = beam_search(model, inputs, 9, beam_size=1, length_penalty=0.0)
    for expected, [hypothesis] in zip(greedy, found, strict=True):
        assert hypothesis.token_ids == expected.token_ids
        assert hypothesis.finished == expected.finished
        assert hypothesis.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
    assert 5 < sum(hypothesis.finished for hypothesis in greedy) < 60, "both kinds should be among them"


def test_of_equal_tokens_the_first_is_taken_as_in_greedy_decoding(model: Model) -> None:
    weight = model.embedding.token.weight.data
    weight[5:] = weight[4]  # of seven tokens all logits are equal
    inputs = make_inputs(model, 16)
    found = beam_search(model, inputs, 6, beam_size=1, length_penalty=0.0)
    greedy = greedy_decode(model, inputs, 6)
    assert [h.token_ids for [h] in found] == [h.token_ids for h in greedy]


@pytest.mark.parametrize("task", ["translation", "generation"])
@pytest.mark.parametrize("penalty", [-0.5, 0.0, 0.6, 1.0, 2.0])
def test_a_beam_that_holds_everything_finds_the_best_of_all_sequences(task: str, penalty: float) -> None:
    model = make_model(task, vocabulary_size=6)
    given = [5, 4, END_ID] if task == "translation" else [BEGIN_ID, 5, 4]
    expected = best_of_all(model, given, 5, penalty)[:10]
    [found] = beam_search(model, [given], 5, beam_size=5**4 + 1, length_penalty=penalty, num_hypotheses=10)
    assert [h.token_ids for h in found] == [h.token_ids for h in expected]
    for hypothesis, best in zip(found, expected, strict=True):
        assert hypothesis.score == pytest.approx(best.score, abs=1e-4)


@pytest.mark.parametrize("penalty", [-0.5, 0.0])
def test_without_a_reward_for_length_stopping_early_loses_nothing(model: Model, penalty: float) -> None:
    """One more token could only lower the score: a search that never stops finds the same."""
    inputs = make_inputs(model, 32)
    found = beam_search(model, inputs, 10, beam_size=4, length_penalty=penalty)
    endless = pytest.MonkeyPatch()
    with endless.context() as patch:
        patch.setattr("dragoman.model.beam_search._Search._is_over", lambda *_: False)
        assert beam_search(model, inputs, 10, beam_size=4, length_penalty=penalty) == found


def test_with_a_reward_for_length_enough_finished_hypotheses_end_the_search(model: Model) -> None:
    """As in fairseq: a search that went on would find ever longer answers."""
    inputs = make_inputs(model, 32)
    found = beam_search(model, inputs, 10, beam_size=2, length_penalty=4.0)
    with pytest.MonkeyPatch().context() as patch:
        patch.setattr("dragoman.model.beam_search._Search._is_over", lambda *_: False)
        endless = beam_search(model, inputs, 10, beam_size=2, length_penalty=4.0)
    lengths, longer = ([len(best.token_ids) for [best] in each if best.finished] for each in (found, endless))
    assert sum(lengths) / len(lengths) < sum(longer) / len(longer) - 0.5


@pytest.mark.parametrize("task", ["translation", "generation"])
def test_a_wider_beam_finds_better_sequences_than_greedy_decoding(task: str) -> None:
    model = make_model(task, VOCABULARY_SIZE, seed=5)  # ends many of its greedy answers
    inputs = make_inputs(model, 64)
    both = zip(
        greedy_decode(model, inputs, 12),
        beam_search(model, inputs, 12, beam_size=5, length_penalty=0.0),
        strict=True,
    )
    finished = [(g.log_probability, b.log_probability) for g, [b] in both if g.finished]
    assert sum(beam for _, beam in finished) > sum(greedy for greedy, _ in finished) + 0.5


def test_log_probabilities_are_those_of_scoring(model: Model) -> None:
    inputs = make_inputs(model, 20)
    found = beam_search(model, inputs, 8, beam_size=4, length_penalty=0.7, num_hypotheses=4)
    for given, hypotheses in zip(inputs, found, strict=True):
        outputs = [hypothesis.token_ids for hypothesis in hypotheses]
        for hypothesis, scores in zip(hypotheses, score(model, [given] * len(outputs), outputs), strict=True):
            assert hypothesis.log_probability == pytest.approx(sum(scores), abs=1e-4)
            assert hypothesis.score == pytest.approx(sum(scores) / len(scores) ** 0.7, abs=1e-4)


def test_an_answer_does_not_depend_on_its_neighbours(model: Model) -> None:
    inputs = make_inputs(model, 64)
    together = beam_search(model, inputs, 10, beam_size=5, num_hypotheses=3)
    for given, hypotheses in zip(inputs, together, strict=True):
        [alone] = beam_search(model, [given], 10, beam_size=5, num_hypotheses=3)
        assert [h.token_ids for h in alone] == [h.token_ids for h in hypotheses]


def test_hypotheses_differ_and_come_finished_first_and_by_score(model: Model) -> None:
    for hypotheses in beam_search(model, make_inputs(model, 32), 6, beam_size=5, num_hypotheses=5):
        assert len({tuple(h.token_ids) for h in hypotheses}) == len(hypotheses) == 5
        order = [(not h.finished, -h.score) for h in hypotheses]
        assert order == sorted(order)
        assert all(END_ID not in h.token_ids[:-1] for h in hypotheses)


def test_time_is_not_spent_on_inputs_whose_search_is_over(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    read = type(model).logits

    def counting(self: Model, x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return read(self, x)

    monkeypatch.setattr(type(model), "logits", counting)
    given = make_inputs(model, 1)[0]
    beam_search(model, [given] * 3, 12, beam_size=2, length_penalty=0.0)
    assert rows[:2] == [3, 6]
    mixed = [[9, END_ID], [9, 9, 4, END_ID], [5, END_ID], [4, 5, 6, 7, END_ID]]
    if isinstance(model, TranslationModel):
        rows.clear()
        beam_search(model, mixed, 12, beam_size=2, length_penalty=0.0)
        assert sorted(set(rows[1:]), reverse=True) == list(dict.fromkeys(rows[1:]))
        assert rows[-1] < 8


def test_the_models_own_limit_holds(model: Model) -> None:
    inputs = make_inputs(model, 32)
    found = beam_search(model, inputs, 1_000, beam_size=1, length_penalty=0.0)
    greedy = greedy_decode(model, inputs, 1_000)
    assert [h.token_ids for [h] in found] == [h.token_ids for h in greedy]


def test_nothing_is_decoded_where_the_limit_is_zero(model: Model) -> None:
    assert beam_search(model, make_inputs(model, 1), 0) == [[BeamHypothesis([], 0.0, 0.0)]]
    assert beam_search(model, [], 5) == []


def test_what_does_not_fit_is_refused(model: Model) -> None:
    inputs = make_inputs(model, 1)
    with pytest.raises(ValueError, match="no token"):
        beam_search(model, [[]], 5)
    with pytest.raises(ValueError, match=r"13 tokens is over .* limit 12"):
        beam_search(model, [[4] * 13], 5)
    with pytest.raises(ValueError, match="beam_size 0"):
        beam_search(model, inputs, 5, beam_size=0)
    with pytest.raises(ValueError, match="num_hypotheses 6 is not within 1 and beam_size 5"):
        beam_search(model, inputs, 5, num_hypotheses=6)
