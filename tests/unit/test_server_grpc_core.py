"""How gRPC's core is set up before a server imports it."""

import os
import subprocess
import sys

import pytest

from dragoman.server.operations.grpc_core import LISTENER, set_up_grpc_core

SERVER = """
from concurrent import futures
import grpc
server = grpc.server(futures.ThreadPoolExecutor(1))
server.add_insecure_port("127.0.0.1:0")
server.start()
server.stop(0).wait()
"""


@pytest.mark.parametrize("is_set", [False, True])
def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch, *, is_set: bool) -> None:
    for name in ("GRPC_VERBOSITY", "GRPC_EXPERIMENTS"):
        monkeypatch.setenv(name, "asked for")
        if not is_set:
            monkeypatch.delenv(name)
    set_up_grpc_core()
    found = os.environ["GRPC_VERBOSITY"], os.environ["GRPC_EXPERIMENTS"]
    assert found == (("asked for", "asked for") if is_set else ("NONE", LISTENER))


@pytest.mark.parametrize(("experiment", "is_known"), [(LISTENER, True), ("-no_such_experiment", False)])
def test_the_installed_grpc_has_the_choice(experiment: str, *, is_known: bool) -> None:
    """A version that has it no more ignores the name: then the choice can go."""
    environment = os.environ | {"GRPC_EXPERIMENTS": experiment, "GRPC_VERBOSITY": "ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", SERVER],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ("Unknown experiment" not in done.stderr) is is_known
