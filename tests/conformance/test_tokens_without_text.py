"""No answer holds a token that stands for no text, however probable it is; PyTorch agrees on what comes instead."""

import random
from collections import Counter
from pathlib import Path

import pytest
from tests.conformance.backends import ON_DEVICE, load
from tests.conformance.exported_models import export

import dragoman.model.beam_search
import dragoman.model.decoding
from dragoman.model.transformer import LanguageModel, TranslationModel
from dragoman.server.bundle.manifest import GoldenExample, SpecialTokens
from dragoman.server.bundle.reader import Bundle
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.golden import check_golden_examples
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.offline import decode_offline, decode_sequences
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.errors import BundleError
from dragoman.server.execution.backend import Backend

BEGIN, END = 2, 3
TOKENS_OF_21 = [7, 6]  # to the fixtures that spell
MAX_TOKENS = 10


def inputs() -> list[list[int]]:
    rng = random.Random(7)
    return [[BEGIN, *(rng.randrange(4, 120) for _ in range(rng.randint(1, 12)))] for _ in range(24)]


def taking_favourites(backend: Backend) -> tuple[Backend, tuple[int, ...]]:
    """The backend as if its two favourite tokens were those for padding and for what is unknown."""
    answers = decode_offline(
        backend, [(ids, DecodingParameters(max_tokens=MAX_TOKENS)) for ids in inputs()], num_slots=8
    )
    counts = Counter(token for answer in answers for token in answer.best.token_ids)
    (first, num_first), (second, _) = counts.most_common(2)
    assert num_first > 10, "what is forbidden should be what the model would choose"
    special = SpecialTokens(padding=first, unknown=second, begin=BEGIN, end=END)
    manifest = backend.bundle.manifest.model_copy(update={"special_tokens": special})
    bundle = Bundle(backend.bundle.path, manifest)
    return Backend(
        bundle, backend.sessions, device=backend.device, kernels=backend.kernels
    ), special.without_text


Exported = tuple[TranslationModel | LanguageModel, Backend, tuple[int, ...]]


@pytest.fixture(params=["translation, pre-norm, grouped heads, SwiGLU", "generation, GELU"])
def exported(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exported:
    torch_model, backend = export(request.param, tmp_path)
    backend, without_text = taking_favourites(backend)
    monkeypatch.setattr(dragoman.model.decoding, "WITHOUT_TEXT", without_text)
    monkeypatch.setattr(dragoman.model.beam_search, "WITHOUT_TEXT", without_text)
    return torch_model, backend, without_text


@pytest.mark.parametrize("multi_step_rows", [0, 64])
def test_greedy_answers_hold_none(exported: Exported, multi_step_rows: int) -> None:
    torch_model, backend, without_text = exported
    expected = dragoman.model.decoding.greedy_decode(torch_model, inputs(), MAX_TOKENS)
    lane = Lane(backend, 8, multi_step_rows=multi_step_rows)
    parameters = DecodingParameters(max_tokens=MAX_TOKENS)
    sequences = [LaneSequence.create(ids, parameters) for ids in inputs()]
    for result, theirs in zip(decode_sequences(lane, sequences), expected, strict=True):
        assert result.best.with_end(END) == theirs.token_ids
        assert result.best.log_probability == pytest.approx(theirs.log_probability, abs=1e-3)
        assert not set(result.best.token_ids) & set(without_text)


@pytest.mark.parametrize("beam_size", [2, 4, 5])
def test_no_hypothesis_holds_one(exported: Exported, beam_size: int) -> None:
    torch_model, backend, without_text = exported
    expected = dragoman.model.beam_search.beam_search(
        torch_model, inputs(), MAX_TOKENS, beam_size=beam_size, num_hypotheses=beam_size
    )
    parameters = DecodingParameters(max_tokens=MAX_TOKENS, beam_size=beam_size, num_hypotheses=beam_size)
    found = decode_offline(backend, [(ids, parameters) for ids in inputs()], num_slots=20)
    num_equal = 0
    for ours, theirs in zip(found, expected, strict=True):
        tokens = [each.with_end(END) for each in ours.hypotheses]
        num_equal += tokens == [each.token_ids for each in theirs]
        assert not {token for each in tokens for token in each} & set(without_text)
    assert num_equal >= len(expected) - 2, "but for near ties, which rounding decides, they are the same"


@pytest.mark.parametrize(
    "parameters",
    [
        DecodingParameters(max_tokens=MAX_TOKENS, temperature=1.0, seed=3),
        DecodingParameters(max_tokens=MAX_TOKENS, temperature=1.0, top_k=4, top_p=0.9, seed=3),
        DecodingParameters(max_tokens=MAX_TOKENS, min_tokens=5),
        DecodingParameters(max_tokens=MAX_TOKENS, prefix=(7, 9)),
        DecodingParameters(max_tokens=MAX_TOKENS, no_repeat_ngram_size=1),
        DecodingParameters(max_tokens=MAX_TOKENS, num_alternatives=3),
        DecodingParameters(max_tokens=MAX_TOKENS, num_alternatives=3, beam_size=3),
        DecodingParameters(max_tokens=MAX_TOKENS, min_tokens=4, beam_size=3),
        DecodingParameters(max_tokens=MAX_TOKENS, repetition_penalty=1.5, beam_size=3),
    ],
)
def test_no_way_of_decoding_chooses_one(exported: Exported, parameters: DecodingParameters) -> None:
    _, backend, without_text = exported
    for result in decode_offline(backend, [(ids, parameters) for ids in inputs()], num_slots=8):
        assert not set(result.best.token_ids) & set(without_text)


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize(
    "name",
    ["bundles/count/1", "extending/count/4", f"halves/count/1{ON_DEVICE}", f"halves/spell/1{ON_DEVICE}"],
)
def test_a_neighbour_that_meets_one_changes_no_answer(name: str, beam_size: int) -> None:
    """Bundles of each age, and caches on a device: the step is read again where too little was told."""
    backend = load(name)
    vocabulary_size = backend.bundle.manifest.dimensions.vocabulary_size
    special = SpecialTokens(padding=vocabulary_size - 1, unknown=8, begin=BEGIN, end=END)
    manifest = backend.bundle.manifest.model_copy(update={"special_tokens": special})
    backend = Backend(
        Bundle(backend.bundle.path, manifest),
        backend.sessions,
        device=backend.device,
        kernels=backend.kernels,
    )
    parameters = DecodingParameters(max_tokens=MAX_TOKENS, beam_size=beam_size)
    rng = random.Random(5)
    cases = [
        ([BEGIN, *(rng.randrange(4, vocabulary_size) for _ in range(rng.randint(1, 8)))], parameters)
        for _ in range(16)
    ]
    together = decode_offline(backend, cases, num_slots=16)
    alone = [decode_offline(backend, [case], num_slots=beam_size)[0] for case in cases]
    assert [each.best.token_ids for each in together] == [each.best.token_ids for each in alone]
    assert not {token for each in together for token in each.best.token_ids} & set(special.without_text)


def test_golden_examples_of_before_still_come_out() -> None:
    """Old releases read a no-break space as the unknown token, and chose that token too."""
    backend = load("bundles/spell/2")
    manifest = backend.bundle.manifest
    unknown = manifest.special_tokens.unknown
    as_recorded = [*TOKENS_OF_21, unknown, END]
    assert unknown not in backend.bundle.tokenizer.encode("21\u00a0").ids

    forced = DecodingParameters(max_tokens=20, prefix=(9, unknown, 9))
    inputs = [(as_recorded, DecodingParameters(max_tokens=20)), ([*TOKENS_OF_21, END], forced)]
    answers = [each.best for each in decode_offline(backend, inputs, num_slots=2)]
    assert unknown in answers[1].token_ids
    examples = tuple(
        GoldenExample(
            text=text, max_tokens=20, token_ids=answer.token_ids, log_probability=answer.log_probability
        )
        for text, answer in zip(("21\u00a0", "21"), answers, strict=True)
    )
    recorded = Bundle(backend.bundle.path, manifest.model_copy(update={"golden_examples": examples}))
    check_golden_examples(Backend(recorded, backend.sessions, kernels=backend.kernels))
    wrong = examples[1].model_copy(update={"log_probability": answers[1].log_probability - 1.0})
    broken = Bundle(backend.bundle.path, manifest.model_copy(update={"golden_examples": (wrong,)}))
    with pytest.raises(BundleError, match="now has log-probability"):
        check_golden_examples(Backend(broken, backend.sessions, kernels=backend.kernels))
