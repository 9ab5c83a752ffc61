"""What reads the bytes of others, with damaged and with any bytes; and a server under all attacks at once."""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.load import hostile
from tests.load.attacks import ATTACKS
from tests.load.fuzz_seeds import seeds_of
from tests.load.fuzz_targets import TARGETS, Target, close_front
from tests.load.mutation import mutated
from tests.load.tls_attacks import TLS_ATTACKS

NUM_CASES = {
    "entries": 400,
    "calls": 60,
    "inference": 120,
    "metadata": 60,
    "files": 60,
    "manifests": 60,
    "tokenizers": 20,
}


@pytest.fixture(scope="module")
def targets() -> Iterator[Mapping[str, Target]]:
    yield {name: make() for name, make in TARGETS.items()}
    close_front()


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_answered_or_refused_as_it_should(targets: Mapping[str, Target], name: str) -> None:
    rng, seeds = random.Random(name), seeds_of(name)
    for _ in range(NUM_CASES[name]):
        targets[name](mutated(rng.choice(seeds), rng))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=300), name=st.sampled_from([name for name in TARGETS if name != "tokenizers"])
)
def test_any_bytes_are_refused_as_they_should(
    targets: Mapping[str, Target], name: str, content: bytes
) -> None:
    targets[name](content)


def test_each_attack_leaves_the_neighbour_its_answers(tmp_path: Path) -> None:
    figures = tmp_path / "hostile.json"
    assert hostile.main(["--rounds", "1", "--share", "0.05", "--in-process", "--json", str(figures)]) == 0, (
        figures.read_text()
    )
    tables = json.loads(figures.read_text())["tables"]
    assert [[row[0] for row in table["rows"]] for table in tables] == [list(ATTACKS), list(TLS_ATTACKS)]
