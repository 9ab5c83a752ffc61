"""A host of lanes that answer each sequence with its input; some inputs have them do other things instead."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dragoman.server.decoding.hypothesis import FinishReason, Hypothesis
from dragoman.server.engine.api import (
    Cancel,
    Command,
    EngineFacts,
    Event,
    Finished,
    LaneLoad,
    Leave,
    Report,
    Started,
)
from dragoman.server.engine.lane_loop import ModelFront
from dragoman.server.engine.processes import checking, host_lanes
from dragoman.server.engine.processes.entry import run_host
from dragoman.server.engine.processes.host import Host
from dragoman.server.engine.processes.host_changes import HostModel
from dragoman.server.engine.processes.messages import Begin, Checked, ModelLoaded, ModelNotLoaded
from dragoman.server.engine.processes.port import SocketPort
from dragoman.server.errors import BundleError, ResourceUnavailable

CRASH, WORK, TELL_CANCELLED, EXIT, BLOAT = 1, 2, 3, 4, 5
LEFT = -1
"""First token of an input: end with SIGSEGV; compute for ever; answer with the ids that were cancelled so far, and with
`LEFT` for a front that left; end by itself; answer with 4 MiB."""


FACTS = EngineFacts("cpu", "none", 2, 1, 8, 1, 1, 100)


class EchoWorker:
    has_work = False

    def __init__(self, port: SocketPort) -> None:
        self._port = port
        self._cancelled: list[int] = []

    def take_turn(self) -> None:
        """All is done when it is asked for."""

    def obey(self, front: ModelFront[int], command: Command) -> None:
        if isinstance(command, Cancel):
            self._cancelled += command.ids
            return
        if isinstance(command, Leave):
            self._cancelled.append(LEFT)
            return
        for request in command.requests:
            answer = self._answer(request.input_ids)
            if answer is not None:
                self._port.send(front, report(request.id, answer))

    def _answer(self, input_ids: Sequence[int]) -> tuple[int, ...] | None:
        match input_ids[0]:
            case 0:
                return None
            case 1:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 2:
                while True:
                    pass
            case 3:
                return tuple(self._cancelled)
            case 4:
                raise KeyError("surprise")
            case 5:
                return tuple(range(1 << 20))
        return tuple(input_ids)


def report(number: int, token_ids: tuple[int, ...]) -> Report:
    hypothesis = Hypothesis(token_ids, FinishReason.LENGTH, 0.0, len(token_ids), 0.0)
    events: list[Event] = [Started(number, time.monotonic(), time.monotonic(), 1)]
    return Report([*events, Finished(number, (hypothesis,))], [], LaneLoad(0, 0))


class Source:
    """Versions are loaded as their names say: "crash", "raise", "lack", "other file", "odd", "dead lane" and so on."""

    def __init__(self, make: Callable[[str, str], HostModel]) -> None:
        self._make = make

    def check(self, name: str, version: str) -> Checked:
        match name:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "raise":
                raise KeyError("surprise")
            case "lack":
                raise ResourceUnavailable("no memory for it")
            case "slow":
                time.sleep(60)
        return Checked(b"digest", 0.5)

    def load(self, name: str, version: str, checked: Checked) -> HostModel:
        if name == "other file":
            raise BundleError("it was changed")
        if name == "odd":
            raise KeyError("surprise")
        if name == "stopped lane":
            host_lanes.MAX_START_S = 0.1
        return self._make(name, version)

    def forget(self, key: str) -> None:
        """There is nothing to forget."""


def load(host: Host, begin: Begin) -> tuple[int, Source]:
    wanted = json.loads(begin.settings)
    checking.MAX_CHECK_S = wanted.get("max_check_s", checking.MAX_CHECK_S)
    if wanted.get("load_s"):
        time.sleep(wanted["load_s"])
    if wanted.get("dies_loading"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if wanted.get("fails"):
        raise BundleError("what is wrong with it")

    def start(port: SocketPort) -> EchoWorker:
        if (once := Path(wanted.get("fails_once", "/none"))).exists():
            once.unlink()
            raise ResourceUnavailable("no memory for rows")
        if wanted.get("lane_fails"):
            raise ResourceUnavailable("no memory for rows")
        if wanted.get("lane_dies"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return EchoWorker(port)

    def start_dead(_: SocketPort) -> EchoWorker:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError

    def start_failing(_: SocketPort) -> EchoWorker:
        raise ResourceUnavailable("no memory for rows")

    def start_never(_: SocketPort) -> EchoWorker:
        os.kill(os.getpid(), signal.SIGSTOP)
        raise AssertionError

    def start_slowly(port: SocketPort) -> EchoWorker:
        time.sleep(0.3)
        return EchoWorker(port)

    def make(name: str, version: str) -> HostModel:
        starts = {
            "dead lane": start_dead,
            "failing lane": start_failing,
            "slow lane": start_slowly,
            "stopped lane": start_never,
        }
        told = ModelLoaded(name, version, FACTS)
        return HostModel(told, starts.get(name, start), (b"manifest of " + name.encode(), b"t" * 300_000))

    for key in begin.versions or ("echo/1", "other/1"):
        host.add_model(make(*key.split("/")))
    host.add_not_loaded(ModelNotLoaded("third", "1", "broken", "it is"))
    num_lanes: int = wanted["num_lanes"]
    return num_lanes, Source(make)


def main() -> None:
    run_host(load)
