"""The exported graphs, run by the serving backend, against the PyTorch model they come from."""

import copy
import random
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime as ort
import pytest
import torch
from tests.conformance.exported_models import MODELS, export, random_ids

from dragoman.export.decode_graphs import decode_graphs
from dragoman.export.errors import ExportError
from dragoman.export.graph import Graph
from dragoman.export.halves import halved
from dragoman.export.onnx_graphs import to_onnx
from dragoman.export.quantization import MAX_WEIGHT, Int8Linear, Range, quantized
from dragoman.export.verification import Agreement, compare, decode_both_ways
from dragoman.model.attention import observe_weights
from dragoman.model.beam_search import beam_search
from dragoman.model.decoding import greedy_decode, score
from dragoman.model.transformer import LanguageModel, TranslationModel, build_model
from dragoman.server.decoding.hypothesis import Decoded
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.stopping import StopCondition
from dragoman.server.engine.api import GraphRun
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.offline import decode_offline, decode_sequences
from dragoman.server.engine.scoring import score_offline
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.encoding import ModelInput
from dragoman.server.execution.kernels import NO_KERNELS
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS


def agreement(model: TranslationModel | LanguageModel, backend: Backend) -> Agreement:
    rng = random.Random(1)
    inputs = [random_ids(rng, 20) for _ in range(100)]
    reference = greedy_decode(model, inputs, max_tokens=16)
    decoded = decode_both_ways(backend, inputs, 16, lambda _: None)
    return compare(backend, model, inputs, reference, decoded)


@pytest.mark.parametrize("kernels", ["auto", NO_KERNELS])
@pytest.mark.parametrize("name", MODELS)
def test_every_token_and_logit_agrees(name: str, kernels: str, tmp_path: Path) -> None:
    found = agreement(*export(name, tmp_path, kernels=kernels))
    assert found.num_disagreements == 0
    assert found.num_equal_inputs + found.num_ties == 100
    assert found.num_batch_differences == 0
    assert found.max_logit_difference < 1e-4


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("generation")])
def test_a_prompt_read_in_blocks_and_from_the_cache_gives_torch_s_logits(name: str, tmp_path: Path) -> None:
    model, backend = export(name, tmp_path)
    assert isinstance(model, LanguageModel)
    rows = backend.with_prefix_cache(1 << 20).rows(1)
    rng = random.Random(3)
    prompt = [rng.randrange(4, 120) for _ in range(BLOCK_TOKENS + 6)]
    for last in (5, 6):
        rows.start([0], [ModelInput([*prompt, last])])
        with torch.inference_mode():
            expected = model(torch.tensor([[*prompt, last]]))[0, -1].log_softmax(dim=-1)
        np.testing.assert_allclose(rows.decode(1).log_probabilities[0], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["translation, pre-norm, grouped heads, SwiGLU", "generation, GELU"])
def test_int8_is_batch_invariant_and_near(name: str, tmp_path: Path) -> None:
    found = agreement(*export(name, tmp_path, "int8"))
    assert found.num_batch_differences == 0
    assert 1e-4 < found.max_logit_difference < 0.5, "quantisation shows, but does not break"


@pytest.mark.parametrize("name", MODELS)
def test_fp16_is_batch_invariant_and_nearer(name: str, tmp_path: Path) -> None:
    model, backend = export(name, tmp_path, "fp16")
    found = agreement(model, backend)
    assert found.num_batch_differences == 0
    assert 1e-4 < found.max_logit_difference < 0.05, "halves show, but little"
    assert next(model.parameters()).dtype == torch.float32, "the run's model stays as it is"
    if isinstance(model, TranslationModel):
        source, target = [5, 9, 7, 11, 30], [6, 8, 44]
        [ours] = backend.rows(1).align(source, [target])
        [theirs] = export(name, tmp_path)[1].rows(1).align(source, [target])
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=5e-3)


def test_weights_that_fp16_cannot_hold_are_named() -> None:
    model = build_model(MODELS["generation, one key head"])
    with torch.no_grad():
        model.decoder_layers[0].feed_forward.expand.weight[3, 4] = 1e5
    with pytest.raises(
        ExportError, match=r"decoder_layers\.0\.feed_forward\.expand\.weight has weights beyond 65,504"
    ):
        halved(model)


def test_scores_of_given_text_agree_with_torch(tmp_path: Path) -> None:
    model, backend = export("generation, GELU", tmp_path)
    rng = random.Random(2)
    inputs = [[2, *(rng.randrange(4, 120) for _ in range(rng.randint(0, 9)))] for _ in range(40)]
    outputs = [[rng.randrange(3, 120) for _ in range(rng.randint(1, 25))] for _ in range(40)]
    expected = score(model, inputs, outputs)
    for ours, theirs in zip(score_offline(backend, inputs, outputs), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


TRANSLATIONS = [name for name in MODELS if name.startswith("translation")]


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_alignments_are_the_weights_of_the_layer_before_the_last(name: str, tmp_path: Path) -> None:
    model, backend = export(name, tmp_path)
    assert isinstance(model, TranslationModel)
    rng = random.Random(3)
    rows = backend.rows(1)
    for num_source, num_target in ((1, 0), (7, 4), (29, 33)):
        source, target = ([rng.randrange(4, 120) for _ in range(size)] for size in (num_source, num_target))
        seen: list[torch.Tensor] = []
        layer = model.decoder_layers[max(0, len(model.decoder_layers) - 2)]
        with torch.inference_mode(), observe_weights(layer.cross_attention, seen.append):
            model(torch.tensor([source]), torch.tensor([[2, *target]]))
        [ours] = rows.align(source, [target])
        assert ours.shape == (num_target + 1, num_source)
        np.testing.assert_allclose(ours, seen[0][0].mean(dim=0), atol=1e-5)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("name", MODELS)
def test_beam_search_finds_what_pytorch_finds(name: str, length_penalty: float, tmp_path: Path) -> None:
    model, backend = export(name, tmp_path)
    rng = random.Random(4)
    inputs = [[2, *(rng.randrange(4, 120) for _ in range(rng.randint(1, 12)))] for _ in range(40)]
    expected = beam_search(model, inputs, 12, beam_size=4, length_penalty=length_penalty, num_hypotheses=3)
    parameters = DecodingParameters(
        max_tokens=12, beam_size=4, num_hypotheses=3, length_penalty=length_penalty
    )
    found = decode_offline(backend, [(ids, parameters) for ids in inputs], num_slots=24)
    num_equal = 0
    for ours, theirs in zip(found, expected, strict=True):
        tokens = [
            [*each.token_ids, *([3] if each.num_output_tokens > len(each.token_ids) else [])]
            for each in ours.hypotheses
        ]
        num_equal += tokens == [each.token_ids for each in theirs]
        for mine, other in zip(ours.hypotheses, theirs, strict=True):
            assert mine.score == pytest.approx(other.score, abs=2e-3)
    assert num_equal >= 38, "but for near ties, which rounding decides, they are the same"


class CountingRuns:
    """Rows of each run, by graph, and how many tokens each sequence got first."""

    def __init__(self) -> None:
        self.num_first_tokens: list[int] = []
        self.rows: dict[str, list[int]] = {"decode": [], "decode_steps": []}

    def observe(self, run: GraphRun) -> None:
        self.rows.setdefault(run.graph, []).append(run.num_rows)


class StopAfter(StopCondition):
    def __init__(self, num_tokens: int) -> None:
        self.num_left = num_tokens

    def accept(self, token_id: int) -> bool:
        self.num_left -= 1
        return not self.num_left

    def fork(self) -> Self:
        return copy.copy(self)


def decode_in_steps(
    backend: Backend,
    inputs: list[tuple[list[int], DecodingParameters, int | None]],
    multi_step_rows: int,
) -> tuple[list[Decoded], CountingRuns]:
    """All of them, to be stopped after so many tokens or not, through a lane of eight rows."""
    runs = CountingRuns()
    sequences = []
    for ids, parameters, num_tokens in inputs:
        sequence = LaneSequence.create(ids, parameters)
        if num_tokens:
            sequence.stop, sequence.is_plain = StopAfter(num_tokens), False
        sequences.append(sequence)
    lane = Lane(backend, 8, multi_step_rows=multi_step_rows)
    lane.observe = runs.observe
    finished = decode_sequences(lane, sequences)
    runs.num_first_tokens = [sequence.num_first_tokens for sequence in sequences]
    return finished, runs


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("translation as in the paper", "fp32"),
        ("translation, pre-norm, grouped heads, SwiGLU", "int8"),
        ("generation, GELU", "int8"),
        ("generation, one key head", "fp32"),
    ],
)
def test_several_steps_in_one_call_choose_what_single_steps_do(
    name: str, precision: str, tmp_path: Path
) -> None:
    """Answers of every length up to the last place there is, with and without a stop string."""
    _, backend = export(name, tmp_path, precision)
    rng = random.Random(6)
    inputs: list[tuple[list[int], DecodingParameters, int | None]] = []
    for index in range(40):
        ids = [2, *(rng.randrange(4, 120) for _ in range(rng.randint(1, 12)))]
        room = 41 if name.startswith("translation") else 40 - len(ids)
        max_tokens = room if index % 3 == 0 else rng.randint(1, room)
        stop = rng.randint(1, max_tokens) if index % 5 == 0 else None
        inputs.append((ids, DecodingParameters(max_tokens=max_tokens), stop))
    expected, single = decode_in_steps(backend, inputs, multi_step_rows=0)
    found, several = decode_in_steps(backend, inputs, multi_step_rows=8)
    assert len(found) == len(expected) == 40
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.best.token_ids == theirs.best.token_ids
        assert ours.best.finish_reason == theirs.best.finish_reason
        assert ours.best.log_probability == pytest.approx(theirs.best.log_probability, abs=1e-4)
    assert {answer.best.finish_reason.name for answer in found} >= {"LENGTH", "STOP_STRING"}
    assert not single.rows["decode_steps"]
    assert single.num_first_tokens == [1] * 40
    assert {4} < set(several.num_first_tokens)
    for num_first, answer in zip(several.num_first_tokens, found, strict=True):
        assert num_first in {1, min(4, answer.best.num_output_tokens)}
    assert len(several.rows["decode_steps"]) > 5
    assert several.rows["decode"], "a full row takes its last steps one by one"
    # Random weights often prefer a token without a text: such a call is made again, a step at a time.
    assert (
        sum(several.rows["decode_steps"]) + sum(several.rows["decode"]) < sum(single.rows["decode"]) * 2 / 3
    )


def test_a_row_that_is_drawn_is_asked_after_each_step(tmp_path: Path) -> None:
    _, backend = export("generation, GELU", tmp_path)
    greedy, drawn = (
        DecodingParameters(max_tokens=20),
        DecodingParameters(max_tokens=6, temperature=1.0, seed=5),
    )
    others = [([2, 5 + index], greedy, None) for index in range(3)]
    expected, _ = decode_in_steps(backend, [*others, ([2, 9], drawn, None)], multi_step_rows=0)
    found, runs = decode_in_steps(backend, [*others, ([2, 9], drawn, None)], multi_step_rows=8)
    assert [answer.best.token_ids for answer in found] == [answer.best.token_ids for answer in expected]
    assert runs.rows["decode"][:6] == [4] * 6
    assert runs.rows["decode_steps"], "the others go on without it"


def test_large_models_and_halves_have_no_steps_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(MODELS["translation as in the paper"])
    layer = model.decoder_layers[0]
    weights = 2 * (5 * 64 * 64 + 64 * 64 + 2 * 64 * 96) + 120 * 64
    assert layer.cross_attention.key_value.weight.shape == (128, 64), "left out: not part of a step"
    for limit, names in ((weights, ["decode", "decode_steps"]), (weights - 1, ["decode"])):
        monkeypatch.setattr("dragoman.export.decode_graphs.MAX_STEP_WEIGHTS", limit)
        assert [graph.name for graph in decode_graphs(model)] == names
    assert [graph.name for graph in decode_graphs(halved(model))] == ["decode"]


def run_product(linear: Int8Linear, x: np.ndarray) -> np.ndarray:
    graph = Graph(
        "product",
        linear,
        {"x": torch.from_numpy(x)},
        {"x": {0: torch.export.Dim("rows")}},
        ("y",),
    )
    session = ort.InferenceSession(to_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def test_integer_products_are_exact_on_this_machine() -> None:
    """Seven-bit weights keep products from saturating on CPUs that add those of bytes in 16 bits."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 256)).astype(np.float32)
    bias = rng.standard_normal(64).astype(np.float32)
    x = rng.standard_normal((17, 256)).astype(np.float32) * 10
    seen = Range.of(torch.from_numpy(x))
    linear = Int8Linear(torch.from_numpy(weight), torch.from_numpy(bias), seen)
    columns = (np.abs(weight).max(1) / MAX_WEIGHT).astype(np.float32)
    low, high = x.min(), x.max()
    scale = np.float32((float(high) - float(low)) / 255)
    zero_point = round(-float(low) / float(scale))
    quantised = np.clip(np.round(x / scale) + zero_point, 0, 255).astype(np.int64) - zero_point
    exact = quantised @ np.round(weight / columns[:, None]).astype(np.int64).T
    np.testing.assert_allclose(run_product(linear, x), exact * scale * columns + bias, rtol=1e-4, atol=1e-4)


def test_zero_stays_zero_and_what_was_never_seen_is_cut_off() -> None:
    seen = Range(torch.tensor([0.5, 1.0]), torch.tensor([2.0, 3.0]))
    linear = Int8Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), None, seen)
    y = run_product(linear, np.array([[0.0, 0.0], [3.0, -1.0], [100.0, 1.5]], np.float32))
    np.testing.assert_allclose(y, [[0.0, 0.0], [3.0, 0.0], [3.0, 1.5]], atol=0.01)


def test_smoothing_changes_no_answer_before_rounding() -> None:
    """Outliers move from activations to weights: the product is the same, and easier to quantise."""
    model = build_model(MODELS["translation, pre-norm, grouped heads, SwiGLU"]).eval()
    with torch.no_grad():  # a channel that dwarfs the others
        for layer in model.decoder_layers:
            layer.around_feed_forward.norm.weight[5] = 60.0
            layer.feed_forward.expand.weight[:, 5] /= 60.0
    inputs = [random_ids(random.Random(1), 20) for _ in range(20)]
    linear = quantized(model, inputs).decoder_layers[0].feed_forward.expand
    assert isinstance(linear, Int8Linear)
    assert isinstance(linear.scale, torch.Tensor)
    assert float(linear.scale) < 60.0 * 2 / 255 / 3, "the range is no longer the outlier's"
