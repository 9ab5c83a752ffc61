"""The engine benchmark compares like with like: same weights, same work, turns in turn, the best setting of each."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.serving.agreement import compare
from benchmarks.serving.contest import Pace, Standing, best_setting, compete, ratio
from benchmarks.serving.ctranslate2_weights import ctranslate2_shape, ctranslate2_weights
from benchmarks.serving.dragoman_systems import DragomanEngine, DragomanLanes, DragomanOnDevice
from benchmarks.serving.engine_report import reference_of, speed_rows
from benchmarks.serving.limit import BareProducts, operations_per_token, products, workload_operations
from benchmarks.serving.pytorch_system import PyTorchEager
from benchmarks.serving.subject import Subject, fixed_workloads, offline_workloads
from benchmarks.serving.systems import Reading, Setting, System, Workload
from tokenizers import Tokenizer, models

from dragoman.model.beam_search import beam_search
from dragoman.model.decoding import Hypothesis
from dragoman.model.recipe import load_recipe
from dragoman.model.run import Run
from dragoman.model.tokenizer import END_ID, SPECIAL_TOKENS
from dragoman.model.transformer import Dimensions, LanguageModel, TranslationModel
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.engine.layout import lane_layout
from dragoman.server.execution.backend import Backend

BUNDLE = Bundle.read(Path(__file__).parents[1] / "fixtures" / "bundles" / "spell" / "1")
DIMS = Dimensions("translation", 60, 32, 4, 4, 64, 2, 3, 40, 40)
PACE = Pace(rounds=3, turn_s=0.0, sweep_turns=2, settle_s=0.0)
WORK = Workload("work", [[5, 6, END_ID]] * 4, max_tokens=8, min_tokens=8, num_rows=2)


@dataclasses.dataclass
class Scripted:
    """A system whose settings take so many seconds; what it does is written in a diary that all share."""

    name: str
    seconds: dict[str, list[float]]
    diary: list[str]
    precision: str = "fp32"
    setting: str = ""
    num_inputs: set[int] = dataclasses.field(default_factory=set)

    def settings(self, workload: Workload) -> list[Setting]:
        return [{"kind": kind} for kind in self.seconds]

    def prepare(self, setting: Setting) -> None:
        self.setting = str(setting["kind"])

    def run(self, workload: Workload, turn_s: float) -> Reading:
        self.diary.append(f"{self.name} {self.setting}")
        self.num_inputs.add(len(workload.inputs))
        times = self.seconds[self.setting]
        return Reading(times.pop(0) if len(times) > 1 else times[0], 100)

    def close(self) -> None:
        pass


def test_the_sweep_takes_the_setting_with_the_fastest_turn_and_warms_each_up() -> None:
    # The warm-up of `late` is slow and that of `early` fast: neither counts.
    system = Scripted("a", {"early": [0.1, 0.5, 0.5], "late": [0.9, 0.45, 0.2]}, [])
    assert best_setting(system, WORK, PACE) == {"kind": "late"}
    assert system.diary == ["a early", "a early", "a late", "a late", "a early", "a late"]


def test_a_setting_far_behind_gets_one_turn_and_much_work_is_tried_in_part() -> None:
    system = Scripted("a", {"slow": [0.1, 0.51, 0.1], "fast": [0.9, 0.4, 0.42]}, [])
    work = dataclasses.replace(WORK, inputs=[[index] for index in range(1_000)], num_rows=None)
    assert best_setting(system, work, PACE) == {"kind": "fast"}
    assert system.diary == ["a slow", "a slow", "a fast", "a fast", "a fast"]
    assert system.num_inputs == {256}
    part = work.part(400)
    assert [ids[0] for ids in part.inputs[:4]] == [0, 2, 5, 7]
    assert part.inputs[-1] == [997]
    assert dataclasses.replace(work, num_rows=8).part(400).num_rows == 8
    assert len(dataclasses.replace(work, num_rows=8).part(400).inputs) == 1_000


def test_a_turn_of_seconds_is_taken_as_it_comes() -> None:
    system = Scripted("a", {"slow": [9.0, 0.1], "fast": [8.0, 0.1], "short": [0.1, 8.5]}, [])
    assert best_setting(system, WORK, PACE) == {"kind": "fast"}
    assert system.diary == ["a slow", "a fast", "a short", "a short"]


def test_long_rounds_end_after_two() -> None:
    systems = [Scripted("a", {"x": [1.0]}, [])]
    [standing] = compete(systems, WORK, dataclasses.replace(PACE, rounds=9, max_rounds_s=0.0))
    assert len(standing.readings) == 2


def test_systems_take_turns_and_those_that_cannot_are_left_out() -> None:
    diary: list[str] = []
    systems = [
        Scripted("a", {"x": [1.0]}, diary),
        Scripted("b", {"y": [2.0]}, diary),
        Scripted("c", {}, diary),
    ]
    standings = compete(systems, WORK, PACE)
    assert diary == ["a x", "b y"] * (1 + PACE.rounds)
    assert [len(one.readings) for one in standings] == [3, 3, 0]
    assert standings[2].setting is None


def test_a_ratio_compares_within_rounds_not_across_them() -> None:
    ours = Standing(Scripted("a", {}, []), WORK, {}, [Reading(s, 10) for s in (1.0, 2.0, 10.0)])
    theirs = Standing(Scripted("b", {}, []), WORK, {}, [Reading(s, 10) for s in (2.0, 6.0, 15.0)])
    found = ratio(ours, theirs)
    assert (found.median, found.least, found.most) == (2.0, 1.5, 3.0)
    assert str(found) == "2.00 (1.50 to 3.00)"


def test_the_table_sets_a_system_beside_dragoman_in_its_own_precision() -> None:
    systems = [
        Scripted("dragoman", {"x": [1.0]}, [], "fp32"),
        Scripted("dragoman", {"x": [2.0]}, [], "int8"),
        Scripted("peer", {"x": [4.0]}, [], "int8"),
        Scripted("mute", {}, [], "int8"),
    ]
    standings = compete(systems, WORK, PACE)
    assert reference_of(standings[2], standings) is standings[1]
    assert reference_of(standings[1], standings) is None
    rows = list(speed_rows(standings))
    assert rows[0][0] == "work"
    assert rows[3] == ["  peer int8", "25", "25 to 25", "2.00 (2.00 to 2.00)", "x"]
    assert rows[4] == ["  mute int8", "–", "", "", ""]


def translation_model(**changes: Any) -> TranslationModel:
    torch.manual_seed(4)
    return TranslationModel(dataclasses.replace(DIMS, **changes)).eval()


@pytest.mark.parametrize("changes", [{}, {"norm": "post"}, {"activation": "swiglu"}])
def test_every_weight_goes_to_ctranslate2_once(changes: dict[str, Any]) -> None:
    model = translation_model(**changes)
    weights = ctranslate2_weights(model)
    shared = [weights.pop(f"{side}.position_encodings.encodings") for side in ("encoder", "decoder")]
    shared += [weights.pop(name) for name in ("encoder.embeddings.0.weight", "decoder.embeddings.weight")]
    np.testing.assert_array_equal(shared[2], weights["decoder.projection.weight"])
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    assert sum(array.size for array in weights.values()) == num_weights
    assert {array.dtype.name for array in weights.values()} == {"float32"}
    assert ("encoder.layer_norm.gamma" in weights) == (model.dims.norm == "pre")


def test_the_gate_of_swiglu_is_what_ctranslate2_activates() -> None:
    model = translation_model(activation="swiglu")
    weights = ctranslate2_weights(model)
    x = torch.randn(2, DIMS.width)

    def linear(name: str) -> torch.Tensor:
        parts = (
            torch.from_numpy(weights[f"decoder.layer.2.ffn.{name}.{part}"]) for part in ("weight", "bias")
        )
        return torch.nn.functional.linear(hidden, *parts)

    hidden = x
    hidden = torch.nn.functional.silu(linear("linear_0")) * linear("linear_0_noact")
    torch.testing.assert_close(linear("linear_1"), model.decoder_layers[2].feed_forward(x))
    assert ctranslate2_shape(model)["gated"]
    assert ctranslate2_shape(model)["activation"] == "SWISH"


def test_what_ctranslate2_cannot_express_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="no 2 key heads for 4 heads"):
        ctranslate2_shape(translation_model(num_kv_heads=2))
    generation = Dimensions("generation", 60, 32, 4, 4, 64, 0, 1, 0, 12)
    with pytest.raises(ValueError, match="generation is no encoder-decoder"):
        ctranslate2_shape(LanguageModel(generation))


def test_agreement_counts_equal_answers_ties_and_errors() -> None:
    reference = [
        Hypothesis([5, END_ID], -1.0, [1.0, 1.0]),
        Hypothesis([6, END_ID], -1.0, [1e-6, 1.0]),
        Hypothesis([7, END_ID], -1.0, [1.0, 1.0]),
    ]
    found = compare("x", "fp32", "greedy", [[5, END_ID], [9, END_ID], [7, 8]], [-1.5, -1.0, -1.0], reference)
    assert (found.num_equal, found.num_ties, found.max_log_probability_error) == (1, 1, 0.25)
    assert not found.holds
    assert dataclasses.replace(found, precision="int8").holds
    most = dataclasses.replace(found, num_equal=99, num_inputs=100)
    assert not most.holds  # the tokens are right, what they cost is not
    assert dataclasses.replace(most, max_log_probability_error=1e-4).holds


def subject(answer_tokens: int | None) -> Subject:
    model = translation_model(num_encoder_layers=1, num_decoder_layers=1)
    words = [f"w{number}" for number in range(DIMS.vocabulary_size - len(SPECIAL_TOKENS))]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    run = Run(Path("run"), model, tokenizer, load_recipe("multi30k"), 0, {})
    inputs = [[*range(4, 4 + length), END_ID] for length in (3, 15, 29, 16, 8)]
    return Subject("small", run, model, inputs, answer_tokens)


def test_work_is_whole_answers_of_a_run_and_forced_ones_of_random_weights() -> None:
    greedy, beam = offline_workloads(subject(None), 3, (1, 5))
    assert (len(greedy.inputs), greedy.max_tokens, greedy.min_tokens, greedy.beam_size) == (3, 41, 0, 1)
    assert (beam.beam_size, beam.forced) == (5, False)
    assert next(offline_workloads(subject(13), 3, (1,))).forced
    works = {work.name: work for work in fixed_workloads(subject(None), (2,), num_cores=2, beam_sizes=(1, 5))}
    assert list(works) == ["one input, greedy", "2 a core, greedy", "one input, beam 5", "2 a core, beam 5"]
    assert [len(ids) for ids in works["2 a core, greedy"].inputs] == [16, 17, 9, 4]
    assert works["one input, beam 5"].num_rows == 1


def test_the_engine_and_bare_lanes_do_the_same_work() -> None:
    backend = Backend.load(BUNDLE, provider="cpu", num_threads=1)
    inputs = [BUNDLE.tokenizer.encode(example.text).ids for example in BUNDLE.manifest.golden_examples]
    whole = Workload("whole", inputs, max_tokens=BUNDLE.manifest.limits.max_output_tokens)
    expected = sum(len(example.token_ids) + 1 for example in BUNDLE.manifest.golden_examples)
    systems: list[System] = [DragomanEngine(backend), DragomanLanes(backend)]
    for system in systems:
        assert len(system.settings(whole)) == 6
        for setting in system.settings(whole):
            system.prepare(setting)
            assert system.run(whole, 0.0).num_tokens == expected
        beam = dataclasses.replace(whole, beam_size=3)
        system.prepare(system.settings(beam)[0])
        assert system.run(beam, 0.0).num_tokens == expected, "the bundle is sure of its golden examples"
        system.close()
    num_lanes, _ = lane_layout(EngineSettings())
    found = [one["slots_per_lane"] for one in DragomanEngine(backend).settings(WORK)]
    assert found == list(dict.fromkeys([2, 1, 2 * num_lanes]))
    beams = dataclasses.replace(WORK, beam_size=5)
    assert DragomanEngine(backend).settings(beams)[0]["slots_per_lane"] == 10


def test_on_a_device_few_lanes_have_many_slots() -> None:
    system = DragomanOnDevice(Backend.load(BUNDLE, provider="cpu", num_threads=1))
    layouts = [(one["lanes"], one["slots_per_lane"]) for one in system.settings(WORK)]
    assert layouts == [(1, 4), (2, 2)]
    assert len(system.settings(dataclasses.replace(WORK, inputs=WORK.inputs[:1]))) == 1
    offline = dataclasses.replace(WORK, num_rows=None, beam_size=5)
    assert [one["slots_per_lane"] for one in system.settings(offline)] == [320, 640, 1280] * 2
    system.prepare(system.settings(WORK)[1])
    assert system.run(WORK, 0.0).num_tokens == 32
    system.close()


def test_pytorch_decodes_forced_lengths_greedily_alone() -> None:
    model = translation_model()
    system = PyTorchEager(model)
    assert system.run(WORK, 0.0).num_tokens == 32
    assert (
        system.settings(dataclasses.replace(WORK, beam_size=5)) == []
    )  # its beam search knows no shortest length
    whole = dataclasses.replace(WORK, beam_size=5, min_tokens=0)
    assert system.settings(whole) == [{}]
    found = beam_search(model, whole.inputs, whole.max_tokens, beam_size=5)
    assert system.run(whole, 0.0).num_tokens == sum(len(best.token_ids) for [best] in found)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_limit_runs_every_product_of_a_step(precision: Any) -> None:
    model = translation_model()
    shapes = list(products(model))
    assert len(shapes) == 3 * 6 + 1
    of_layer = [(32, 96), *[(32, 32)] * 3, (32, 64), (64, 32)]  # of cross-attention, not its keys and values
    assert sorted(shapes[:6]) == sorted(of_layer)
    assert shapes[-1] == (32, 60)
    of_source, of_answer = operations_per_token(model)
    matrices = [p.numel() for name, p in model.named_parameters() if p.dim() == 2]
    assert of_source + of_answer == 2 * sum(matrices)  # the embedding counts as the projection
    assert workload_operations(model, WORK, 32) == 12 * of_source + 32 * of_answer
    bare = BareProducts(model, precision, num_cores=2)
    assert bare.settings(WORK) == [{}]
    assert bare.settings(dataclasses.replace(WORK, min_tokens=0)) == []
    reading = bare.run(WORK, 0.01)
    assert reading.num_tokens == 32
    assert reading.seconds > 0
