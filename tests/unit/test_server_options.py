"""Every broken rule is a violation that names the field and the value; all are reported at once."""

import math
import struct

import pytest

from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.requests.options import Abilities, Options, Room, check_options
from dragoman.server.requests.parameters import decoding_parameters

ROOM = Room(limit=64, left=40)
ABILITIES = Abilities(vocabulary_size=1000, max_beam_size=16, aligns=True)


def float32(value: float) -> float:
    """What the wire makes of it."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        (Options(max_tokens=0), "max_tokens", "0 is not between 1 and 64"),
        (Options(max_tokens=65), "max_tokens", "65 is not between 1 and 64"),
        (Options(max_tokens=3, min_tokens=4), "min_tokens", "4 is more than 3"),
        (Options(min_tokens=41), "min_tokens", "41 is more than 40"),
        (Options(temperature=-1.0), "temperature", "-1 is not between 0 and 100"),
        (Options(temperature=math.nan), "temperature", "nan is not"),
        (Options(temperature=math.inf), "temperature", "inf is not"),
        (Options(temperature=100.5), "temperature", "100.5 is not"),
        (Options(top_k=5), "top_k", "5 has no meaning without a temperature"),
        (Options(top_p=float32(0.9)), "top_p", "0.9 has no meaning without a temperature"),
        (Options(seed=2**63), "seed", f"{2**63} has no meaning without a temperature"),
        (Options(temperature=0.0, seed=1), "seed", "1 has no meaning"),
        (Options(temperature=1.0, top_p=0.0), "top_p", "0 is not above 0 and at most 1"),
        (Options(temperature=1.0, top_p=1.5), "top_p", "1.5 is not"),
        (Options(temperature=1.0, top_p=math.nan), "top_p", "nan is not"),
        (
            Options(temperature=1.0, top_p=float32(1.0000001)),
            "top_p",
            "1.0000001 is not above 0 and at most 1",
        ),
        (Options(temperature=float32(100.00001)), "temperature", "100.00001 is not between 0 and 100"),
        (
            Options(length_penalty=float32(-10.000001)),
            "length_penalty",
            "-10.000001 is not between -10 and 10",
        ),
        (Options(stop=("a",) * 17), "stop", "17 strings are more than 16"),
        (Options(stop=("a", "")), "stop[1]", "is empty"),
        (Options(stop=("x" * 257,)), "stop[0]", "257 characters are more than 256"),
    ],
)
def test_a_broken_rule_names_field_and_value(options: Options, field: str, said: str) -> None:
    [violation] = check_options(options, ROOM, ABILITIES)
    assert violation.field == f"options.{field}"
    assert said in violation.description


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(max_tokens=64, min_tokens=40),
        Options(max_tokens=1, min_tokens=1),
        Options(temperature=0.0),
        Options(temperature=100.0, top_k=0, top_p=1.0, seed=2**64 - 1),
        Options(stop=("x" * 256,) * 16),
    ],
)
def test_options_within_the_rules(options: Options) -> None:
    assert check_options(options, ROOM, ABILITIES) == []


def test_all_broken_rules_are_reported_at_once() -> None:
    options = Options(max_tokens=0, min_tokens=99, temperature=-1.0, top_p=2.0, stop=("",))
    fields = {violation.field for violation in check_options(options, ROOM, ABILITIES)}
    assert fields == {
        "options.max_tokens",
        "options.min_tokens",
        "options.temperature",
        "options.top_p",
        "options.stop[0]",
    }


def test_defaults_are_greedy_up_to_what_is_left() -> None:
    assert decoding_parameters(Options(), ROOM, 0) == (DecodingParameters(max_tokens=40),)


def test_max_tokens_is_cut_to_what_the_prompt_leaves() -> None:
    assert decoding_parameters(Options(max_tokens=50), ROOM, 0)[0].max_tokens == 40
    assert decoding_parameters(Options(max_tokens=5), ROOM, 0)[0].max_tokens == 5


def test_a_given_seed_counts_up_over_the_inputs() -> None:
    options = Options(temperature=0.5, seed=2**64 - 1)
    assert [decoding_parameters(options, ROOM, index)[0].seed for index in range(3)] == [2**64 - 1, 0, 1]


def test_a_seed_left_out_is_fresh_for_each_input() -> None:
    seeds = {decoding_parameters(Options(temperature=0.5), ROOM, 0)[0].seed for _ in range(20)}
    assert len(seeds) == 20
