"""SIGHUP to a whole server: under traffic, with a wrong file, with several fronts, and from a terminal that closes."""

import contextlib
import json
import os
import pty
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.integration.child_server import ENVIRONMENT, ROOT, RUN_SERVER, Process, ports, running
from tests.integration.serving import PATIENCE_S

from dragoman.v1 import translation_pb2, translation_pb2_grpc

REQUEST = translation_pb2.TranslateRequest(model="spell", inputs=["4071"])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text("")
    return path


def hang_up(server: Process) -> None:
    server.process.send_signal(signal.SIGHUP)


@contextlib.contextmanager
def traffic(port: int) -> Iterator[list[grpc.RpcError]]:
    """Calls one after the other from several threads, each on connections of its own; yields those that failed."""
    failed: list[grpc.RpcError] = []
    is_over = threading.Event()

    def call() -> None:
        while not is_over.is_set():
            with grpc.insecure_channel(
                f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                stub = translation_pb2_grpc.TranslationServiceStub(channel)
                for _ in range(20):
                    try:
                        stub.Translate(REQUEST, timeout=PATIENCE_S)
                    except grpc.RpcError as error:
                        failed.append(error)
                    is_over.wait(
                        0.01
                    )  # a server with the level `debug` may have more lines than its log can take

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_reloads_under_traffic_fail_no_call(config: Path) -> None:
    arguments = ("--set", "server.fronts=2", "--set", "engine.lanes_run_in=processes")
    with running(*ports(), "--config", str(config), *arguments) as server:
        serving = server.wait_for("serving")
        with traffic(serving["port"]) as failed:
            for max_calls, level in ((100, "info"), (200, "debug"), (300, "info")):
                config.write_text(
                    f"[server]\nmax_concurrent_calls = {max_calls}\n[logging]\nlevel = '{level}'\n"
                )
                hang_up(server)
                said = server.wait_for("reloaded")
                assert "server.max_concurrent_calls" in said["changed"]
                assert said["parts"] == ["certificates and tokens", "log and limits", "further fronts"]
                if level == "debug":
                    fronts: set[int | None] = set()
                    while fronts != {None, 1}:  # calls are logged in both
                        fronts.add(server.wait_for("request").get("front"))
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 0
    assert failed == []


def test_a_wrong_file_is_named_and_changes_nothing(config: Path) -> None:
    with running(*ports(), "--config", str(config)) as server:
        server.wait_for("serving")
        config.write_text("[server]\nmax_concurent_calls = 1\n")
        hang_up(server)
        assert server.wait_for("not_reloaded")["error"] == (
            f"{config}: unknown key 'server.max_concurent_calls'; did you mean 'max_concurrent_calls'?"
        )
        config.unlink()
        hang_up(server)
        assert server.wait_for("not_reloaded")["error"] == f"cannot read {config}: No such file or directory"
        config.write_text("[server]\nmax_inputs = 5\n")
        hang_up(server)
        assert server.wait_for("reloaded")["needs_restart"] == ["server.max_inputs"]
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 0


def test_a_terminal_that_is_closed_stops_the_server() -> None:
    """As SIGHUP means it since there are terminals. Without one the same signal is a wish to reload."""
    command = [sys.executable, "-c", RUN_SERVER, "--log-format", "json", *ports()]
    read, write = os.pipe()
    pid, terminal = pty.fork()
    if not pid:
        os.dup2(write, 2)
        os.chdir(ROOT)
        os.execve(sys.executable, command, ENVIRONMENT)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as log:
        events = map(json.loads, log)
        assert any(event["event"] == "serving" for event in events)
        os.kill(pid, signal.SIGHUP)
        assert any(event["event"] == "reloaded" for event in events)
        os.close(terminal)
        assert [event["signal"] for event in events if event["event"] == "stopping"] == ["SIGHUP"]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
