import math
import random

import pytest

from dragoman.model.corpora import holding_out
from dragoman.model.corpora.corpus import Pair, stable_share
from dragoman.model.corpora.holding_out import hold_out_by_source, hold_out_ends


def ranked(pairs: list[Pair]) -> list[str]:
    return sorted({pair.source for pair in pairs}, key=stable_share)


@pytest.mark.parametrize(
    ("validation_share", "test_share"), [(0.02, 0.02), (0.0, 0.3), (0.5, 0.0), (0.0, 0.0)]
)
def test_the_lowest_hashes_are_held_out(validation_share: float, test_share: float) -> None:
    rng = random.Random(7)
    pairs = [Pair(f"source {rng.randrange(400)}", f"target {n}") for n in range(1_000)]
    sources = ranked(pairs)
    first = math.ceil(len(sources) * validation_share)
    second = first + math.ceil(len(sources) * test_share)
    held_out = hold_out_by_source(iter(pairs), validation_share, test_share)
    assert held_out.validation == [pair for pair in pairs if pair.source in sources[:first]]
    assert held_out.test == [pair for pair in pairs if pair.source in sources[first:second]]
    training = list(held_out.training(iter(pairs)))
    assert training == [pair for pair in pairs if pair.source in sources[second:]]
    assert held_out.num_train == len(training)


def test_what_is_held_out_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding_out, "MAX_HELD_OUT", 50)
    pairs = [Pair(f"source {n % 900}", f"target {n}") for n in range(1_000)]
    held_out = hold_out_by_source(iter(pairs), 0.4, 0.4)
    sources = ranked(pairs)
    training = list(held_out.training(iter(pairs)))
    assert 48 <= len(held_out.validation) <= 50
    assert 48 <= len(held_out.test) <= 50
    num_validation = len({pair.source for pair in held_out.validation})
    assert {pair.source for pair in held_out.validation} == set(sources[:num_validation])
    assert not {pair.source for pair in training} & set(sources[:num_validation])
    assert len(training) + len(held_out.validation) + len(held_out.test) == 1_000
    assert held_out.num_train == len(training)


def test_a_source_repeated_endlessly_is_held_out_whole_and_kept_in_part() -> None:
    pairs = [Pair("again", f"target {n}") for n in range(500)] + [Pair("once", "target")]
    share = 0.5
    held_out = hold_out_by_source(iter(pairs), share, 0.0)
    [source] = ranked(pairs)[:1]
    training = list(held_out.training(iter(pairs)))
    assert {pair.source for pair in held_out.validation} == {source}
    assert source not in {pair.source for pair in training}
    assert len(held_out.validation) == (100 if source == "again" else 1)
    assert held_out.num_train == len(training)


def test_ends_of_all_documents_are_cut_and_some_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding_out, "MAX_HELD_OUT", 5)
    documents = [f"{n:02d}" * 10 for n in range(20)]
    held_out = hold_out_ends(iter(documents), 0.1, 0.2)
    assert list(held_out.training(iter(documents))) == [document[:14] for document in documents]
    assert held_out.num_train == 20
    kept = [document for document in documents if document in sorted(documents, key=stable_share)[:5]]
    assert held_out.validation == [document[14:16] for document in kept]
    assert held_out.test == [document[16:] for document in kept]


def test_nothing_to_hold_out_from() -> None:
    assert hold_out_ends(iter([]), 0.1, 0.1).num_train == 0
    assert hold_out_by_source(iter(list[str]()), 0.1, 0.1).num_train == 0
