"""How many fronts there are, and what of the limits each of them has."""

import pytest

from dragoman.common.errors import SettingsError, UsageError
from dragoman.server.config import load_settings
from dragoman.server.fronts.processes import layout


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, 1), (2, 1), (4, 1), (5, 2), (8, 2), (9, 3), (16, 4), (64, 16)]
)
def test_auto_follows_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, expected: int) -> None:
    monkeypatch.setattr(layout, "usable_cores", lambda: cores)
    assert layout.num_fronts(load_settings(), lanes_are_processes=True) == expected
    assert layout.num_fronts(load_settings(), lanes_are_processes=False) == 1
    on_socket = load_settings(options={"server.host": "unix:/tmp/x"})
    assert layout.num_fronts(on_socket, lanes_are_processes=True) == 1


def test_a_number_is_taken_at_its_word_or_refused() -> None:
    settings = load_settings(overrides=["server.fronts=3"])
    assert layout.num_fronts(settings, lanes_are_processes=True) == 3
    with pytest.raises(UsageError, match=r"server.fronts = 3: it needs engine.lanes_run_in = 'processes'"):
        layout.num_fronts(settings, lanes_are_processes=False)
    one = load_settings(overrides=["server.fronts=1"])
    assert layout.num_fronts(one, lanes_are_processes=False) == 1


@pytest.mark.parametrize("value", ["0", "65", "2.5", '"many"'])
def test_a_number_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r'server.fronts.*whole number from 1 to 64, or "auto"'):
        load_settings(overrides=[f"server.fronts={value}"])


def test_a_unix_socket_has_one_front() -> None:
    with pytest.raises(SettingsError, match="fronts = 2: a Unix domain socket has one front"):
        load_settings(options={"server.host": "unix:/tmp/x"}, overrides=["server.fronts=2"])


def test_calls_and_queues_are_divided_and_one_call_always_fits() -> None:
    settings = load_settings(overrides=["server.max_concurrent_calls=10", "engine.max_waiting=300"])
    third = layout.share(settings, 3)
    assert third.server.max_concurrent_calls == 4
    assert third.engine.max_waiting == settings.server.max_inputs == 128
    assert layout.share(settings, 2).engine.max_waiting == 150
    assert layout.share(settings, 1) == settings
    assert third.tracing.max_asked_spans_a_second == settings.tracing.max_asked_spans_a_second / 3
    undivided = {"server": settings.server, "engine": settings.engine, "tracing": settings.tracing}
    assert third.model_copy(update=undivided) == settings
