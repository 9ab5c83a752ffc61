"""Servers side by side: a server that ends by itself is noted, and started again for the next flood."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from benchmarks.serving.load import Service
from tests.integration.serving import BUNDLES, PATIENCE_S
from tests.load import side_by_side
from tests.load.attacks import DRAGOMAN
from tests.load.child_life import ChildLife
from tests.load.crowd import crowd

from dragoman.cli.server_process import running_server


@contextlib.contextmanager
def spell() -> Iterator[Service]:
    with running_server(BUNDLES) as server:
        yield Service("Dragoman", server.target, DRAGOMAN.path, [DRAGOMAN.message], server.process.pid)


@pytest.mark.parametrize(
    ("program", "end"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ],
)
def test_the_end_of_a_child_is_seen_and_left_to_its_owner(program: str, end: str) -> None:
    with subprocess.Popen([sys.executable, "-c", f"input(); {program}"], stdin=subprocess.PIPE) as child:
        life = ChildLife(child.pid)
        assert life.end == ""
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.close()
        assert life.wait(PATIENCE_S)
        assert life.end.startswith(f"{end} after ")
        assert child.wait(PATIENCE_S) == (3 if "3" in end else -signal.SIGKILL)


def test_what_takes_longer_than_its_limit_is_killed() -> None:
    with pytest.raises(TimeoutError, match="sleeping: not done after 0 s"):
        crowd(time.sleep, [(10 * PATIENCE_S,)], title="sleeping", limit_s=0.0)


def test_a_server_that_dies_in_a_flood_is_noted_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    flood, seen = side_by_side._flood, []

    def deadly_flood(service: Service, name: str, share: float) -> side_by_side.Finding:
        seen.append(service.pid)
        if name == "HTTP/1":
            assert service.pid is not None
            life = ChildLife(service.pid)
            os.kill(service.pid, signal.SIGKILL)
            assert life.wait(PATIENCE_S)
        return flood(service, name, share)

    monkeypatch.setattr(side_by_side, "_flood", deadly_flood)
    monkeypatch.setattr(side_by_side, "ATTACKS", ("HTTP/1", "damaged messages"))
    found = side_by_side.under_floods(side_by_side.Contender(spell, ()), 0.01)
    assert seen[0] != seen[1]
    assert found["HTTP/1: the server"].text.startswith("ended by itself: SIGKILL")
    assert found["HTTP/1: neighbour"].text.startswith("no answer; the attack did not come to its end")
    assert found["damaged messages: neighbour"].text.startswith("p99 ")
    assert found["SIGTERM after the floods"].text.startswith("exit code 0")
    assert [what for what, each in found.items() if each.is_fault] == [
        "HTTP/1: neighbour",
        "HTTP/1: the server",
    ]


def test_figures_that_are_clearly_lower_are_told_as_better() -> None:
    ours = {"a": side_by_side.Finding("20 ms", 20.0), "b": side_by_side.Finding("1", 1.0)}
    theirs = {"a": side_by_side.Finding("10 ms; 3 OK", 10.0), "b": side_by_side.Finding("0.99", 0.99)}
    assert list(side_by_side._better(theirs, ours)) == ["a (10 ms against 20 ms)"]
