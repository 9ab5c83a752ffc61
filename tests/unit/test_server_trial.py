"""A bundle is driven to its limits before it serves; what it was exported with passes."""

from pathlib import Path

import pytest
from tests.unit.damaged_bundles import FIXTURES, GENERATION, TRANSLATION, copy_of, set_value

from dragoman.server.bundle.reader import Bundle
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.golden import check_golden_examples
from dragoman.server.engine.offline import decode_offline
from dragoman.server.engine.trial import check_answers
from dragoman.server.errors import BundleError
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.sessions import load_sessions

ALL = sorted(str(path.parent.relative_to(FIXTURES)) for path in FIXTURES.glob("*/*/*/bundle.json"))


def load(folder: Path) -> Backend:
    return Backend.load(Bundle.read(folder), provider="cpu", num_threads=1)


@pytest.mark.parametrize("num_rows", [1, 2, 32])
@pytest.mark.parametrize("fixture", ALL)
def test_every_committed_bundle_passes(fixture: str, num_rows: int) -> None:
    check_answers(load(FIXTURES / fixture), num_rows=num_rows)


@pytest.mark.parametrize("fixture", [name for name in ALL if name.startswith("halves")])
def test_caches_on_a_device_pass_too(fixture: str) -> None:
    bundle = Bundle.read(FIXTURES / fixture)
    sessions = load_sessions(bundle, provider="cpu", num_threads=1, on_device=True)
    check_answers(Backend(bundle, sessions, device="cpu"))


def test_what_golden_examples_never_reach_is_found(tmp_path: Path) -> None:
    """They are short, greedy and without an alignment: a limit beyond the graphs was served, and then INTERNAL."""
    for fixture in (TRANSLATION, GENERATION):
        folder = copy_of(fixture, tmp_path)
        set_value(folder, "limits/max_context_tokens", 400)
        backend = load(folder)
        check_golden_examples(backend)
        with pytest.raises(BundleError, match="fails when it is run at its limits"):
            check_answers(backend)


def test_an_answer_of_full_length_has_an_alignment() -> None:
    """Behind it comes no end of sequence; the position that was fed for one is beyond the graph's last."""
    backend = load(FIXTURES / TRANSLATION)
    longest = backend.bundle.manifest.limits.max_output_tokens
    parameters = DecodingParameters(max_tokens=longest, min_tokens=longest, align=True)
    source = backend.bundle.tokenizer.encode("12").ids
    [finished] = decode_offline(backend, [(source, parameters)], num_slots=1)
    assert len(finished.best.alignment) == len(finished.best.token_ids) == longest
