"""The generation benchmark gives every system the same weights and the same work, and finds out when one differs."""

import dataclasses

import numpy as np
import pytest
import torch
from benchmarks.generation import check_agreement
from benchmarks.serving.contest import Standing
from benchmarks.serving.ctranslate2_weights import ctranslate2_generator_shape, ctranslate2_generator_weights
from benchmarks.serving.generation_report import prompt_rows
from benchmarks.serving.generation_subject import (
    GenerationSubject,
    Shape,
    Work,
    first_token_workloads,
    prompts,
    random_generator,
    stream_workloads,
)
from benchmarks.serving.generation_systems import Generator
from benchmarks.serving.systems import Answers, Reading, Setting, Workload
from benchmarks.serving.transformers_weights import gpt2_config, gpt2_weights
from torch.nn import functional

from dragoman.model.decoding import greedy_decode
from dragoman.model.tokenizer import BEGIN_ID, SPECIAL_TOKENS
from dragoman.model.transformer import LanguageModel

SHAPE = Shape(layers=2, width=32, heads=4, feed_forward=64, vocabulary=60, context=40)
WORK = Work(first_token_prompts=(5, 9), streams=(1, 3), prompt_tokens=4, new_tokens=6)


@pytest.fixture(scope="module")
def subject() -> GenerationSubject:
    return random_generator(SHAPE, seed=1)


@dataclasses.dataclass
class Decoder:
    """PyTorch's own decoding under another name, wrong where it is told to be."""

    model: LanguageModel
    wrong: bool = False
    name: str = "decoder"
    precision: str = "fp32"

    def settings(self, workload: Workload) -> list[Setting]:
        return [{"threads": 1}]

    def prepare(self, setting: Setting) -> None:
        pass

    def run(self, workload: Workload, turn_s: float) -> Reading:
        return Reading(0.5, sum(map(len, self.decode(workload).token_ids)))

    def decode(self, workload: Workload) -> Answers:
        found = greedy_decode(self.model, workload.inputs, workload.max_tokens, workload.min_tokens)
        token_ids = [one.token_ids[:: -1 if self.wrong else 1] for one in found]
        return Answers(token_ids, [one.log_probability for one in found])

    def close(self) -> None:
        pass


def test_the_model_has_the_shape_that_was_asked_for_and_the_seed_decides_its_weights(
    subject: GenerationSubject,
) -> None:
    dims = subject.dims
    assert (dims.num_decoder_layers, dims.width, dims.num_heads, dims.vocabulary_size) == (2, 32, 4, 60)
    assert (dims.feed_forward_width, dims.max_target_tokens, dims.activation) == (64, 40, "gelu")
    again = random_generator(SHAPE, seed=1).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in subject.model.state_dict().items())


def test_work_is_single_prompts_up_to_one_token_and_streams_of_one_forced_length(
    subject: GenerationSubject,
) -> None:
    first = list(first_token_workloads(subject, WORK))
    assert [(len(work.inputs), len(work.inputs[0]), work.max_tokens) for work in first] == [
        (1, 5, 1),
        (1, 9, 1),
    ]
    streams = list(stream_workloads(subject, WORK))
    assert [(work.name, len(work.inputs), work.max_tokens) for work in streams] == [
        ("1 stream", 1, 6),
        ("3 streams", 3, 6),
    ]
    assert all(work.forced for work in [*first, *streams])
    drawn = prompts(subject.dims, 50, 4, seed=2)
    assert all(ids[0] == BEGIN_ID and min(ids[1:]) >= len(SPECIAL_TOKENS) for ids in drawn)


def test_every_weight_goes_to_ctranslate2_once(subject: GenerationSubject) -> None:
    weights = ctranslate2_generator_weights(subject.model)
    weights.pop("decoder.position_encodings.encodings")
    np.testing.assert_array_equal(
        weights.pop("decoder.embeddings.weight"), weights["decoder.projection.weight"]
    )
    num_weights = sum(parameter.numel() for parameter in subject.model.parameters())
    assert sum(array.size for array in weights.values()) == num_weights
    assert not any(".attention." in name for name in weights)  # there is no encoder to look at
    assert ctranslate2_generator_shape(subject.dims)["num_layers"] == SHAPE.layers


def test_gpt2_with_these_weights_computes_the_same_logits(subject: GenerationSubject) -> None:
    """GPT-2 written out, in the order of modeling_gpt2.py: Conv1D is x @ weight + bias."""
    weights = {name: torch.from_numpy(array) for name, array in gpt2_weights(subject.model).items()}
    config = gpt2_config(subject.dims)
    token_ids = torch.tensor(prompts(subject.dims, 3, 7, seed=3))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = (weights[f"transformer.{name}.{part}"] for part in ("weight", "bias"))
        return functional.layer_norm(x, (config["n_embd"],), weight, bias, config["layer_norm_epsilon"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"transformer.{name}.weight"] + weights[f"transformer.{name}.bias"]

    x = weights["transformer.wte.weight"][token_ids] + weights["transformer.wpe.weight"][:7]
    for index in range(config["n_layer"]):
        packed = linear(norm(x, f"h.{index}.ln_1"), f"h.{index}.attn.c_attn")
        query, key, value = (
            part.view(3, 7, config["n_head"], -1).transpose(1, 2) for part in packed.chunk(3, dim=-1)
        )
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + linear(seen.transpose(1, 2).flatten(2), f"h.{index}.attn.c_proj")
        hidden = functional.gelu(linear(norm(x, f"h.{index}.ln_2"), f"h.{index}.mlp.c_fc"))
        x = x + linear(hidden, f"h.{index}.mlp.c_proj")
    logits = norm(x, "ln_f") @ weights["lm_head.weight"].T
    torch.testing.assert_close(logits, subject.model(token_ids), rtol=1e-4, atol=1e-4)


def test_agreement_holds_for_the_same_model_and_not_for_another(subject: GenerationSubject) -> None:
    systems: list[Generator] = [Decoder(subject.model), Decoder(subject.model, wrong=True)]
    right, wrong = check_agreement(subject, systems, WORK, num_prompts=4)
    assert right.holds
    assert right.num_equal == 4
    assert not wrong.holds


def test_a_prompt_row_tells_time_and_speed_of_reading(subject: GenerationSubject) -> None:
    work = next(first_token_workloads(subject, WORK))
    readings = [Reading(seconds, 1) for seconds in (0.5, 0.25, 1.0)]
    standing = Standing(Decoder(subject.model), work, {"threads": 1}, readings)
    title, row = prompt_rows([standing])
    assert title[0] == "prompt of 5 tokens"
    assert row == ["  decoder fp32", "500.0", "250.0 to 1,000.0", "10", "", "1"]
