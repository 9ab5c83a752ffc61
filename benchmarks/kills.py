"""SIGKILL for lanes, hosts and fronts of a loaded server, at random moments: what becomes of calls, memory and files.

    python -m benchmarks.kills models/dates/1 --kills 100

Callers ask for translations of the bundle's golden inputs, without repeating anything, and know the right answers.
Others use `dragoman.AsyncClient`, which repeats what may be repeated. Fails where an answer was wrong, a call ended
with a status that says not to try again, or something was left behind.
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio
import psutil

from dragoman.client import AsyncClient, CallError
from dragoman.common.memory import proportional_bytes
from dragoman.v1 import translation_pb2, translation_pb2_grpc

RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
SETTLE_S = 3.0
PATIENCE_S = 30.0
WEIGHTS = {"lane": 8, "host": 1, "front": 1}


class Tree:
    """The processes of a server, by what they are."""

    def __init__(self, server: int) -> None:
        self.server = psutil.Process(server)

    def by_kind(self) -> dict[str, list[psutil.Process]]:
        while True:
            try:
                return self._by_kind()
            except psutil.Error:  # one has gone meanwhile
                continue

    def _by_kind(self) -> dict[str, list[psutil.Process]]:
        kinds: dict[str, list[psutil.Process]] = {"lane": [], "host": [], "front": []}
        for child in self.server.children():
            if child.name() == "engine-host":
                kinds["host"].append(child)
                kinds["lane"] += [each for each in child.children() if each.name().startswith("lane-")]
            elif child.status() != psutil.STATUS_ZOMBIE:
                kinds["front"].append(child)
        return kinds

    def all(self) -> list[psutil.Process]:
        return [self.server, *self.server.children(recursive=True)]

    def num_zombies(self) -> int:
        return sum(each.status() == psutil.STATUS_ZOMBIE for each in self.all())

    def memory_bytes(self) -> int:
        return sum(proportional_bytes(each.pid) for each in self.all())

    def num_files(self) -> dict[str, int]:
        [host] = self.by_kind()["host"]
        return {"server": self.server.num_fds(), "host": host.num_fds()}


class Load:
    """Callers, and what they were told."""

    def __init__(self, port: int, model: str, answers: dict[str, str]) -> None:
        self._target = f"127.0.0.1:{port}"
        self._model = model
        self._answers = answers
        self.plain: Counter[str] = Counter()
        self.repeated: Counter[str] = Counter()
        self.is_over = False

    async def ask(self) -> None:
        """One caller that repeats nothing."""
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._target, options) as channel:
            stub: translation_pb2_grpc.TranslationServiceAsyncStub = (
                translation_pb2_grpc.TranslationServiceStub(channel)
            )
            while not self.is_over:
                texts = random.choices(list(self._answers), k=4)
                request = translation_pb2.TranslateRequest(model=self._model, inputs=texts)
                try:
                    answer = await stub.Translate(request, timeout=PATIENCE_S, wait_for_ready=True)
                except grpc.aio.AioRpcError as error:
                    is_retryable = error.code() in RETRYABLE
                    self.plain[
                        "retryable" if is_retryable else f"{error.code().name}: {error.details()}"
                    ] += 1
                    continue
                told = [each.text for each in answer.translations]
                self.plain["right" if told == [self._answers[text] for text in texts] else "wrong"] += 1

    async def ask_with_client(self) -> None:
        """One caller with our client."""
        async with AsyncClient(self._target) as client:
            while not self.is_over:
                texts = random.choices(list(self._answers), k=4)
                try:
                    answers = await client.translate(texts, model=self._model, timeout_s=PATIENCE_S)
                except CallError as error:
                    self.repeated[f"{type(error).__name__}: {error}"] += 1
                    continue
                told = [each.text for each in answers]
                self.repeated["right" if told == [self._answers[text] for text in texts] else "wrong"] += 1


async def kill_again_and_again(tree: Tree, num_kills: int) -> tuple[Counter[str], dict[str, list[float]]]:
    """Kill; returns how many of each kind, and the seconds until as many processes of that kind were there again."""
    counts: Counter[str] = Counter()
    seconds: dict[str, list[float]] = defaultdict(list)
    num_wanted = {kind: len(each) for kind, each in tree.by_kind().items()}
    while sum(counts.values()) < num_kills:
        await asyncio.sleep(random.uniform(0.02, 0.6))
        there = tree.by_kind()
        [kind] = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if not there[kind]:  # none is left, or there are no such
            continue
        victim = random.choice(there[kind])
        victim.send_signal(signal.SIGKILL)
        began = time.monotonic()
        counts[kind] += 1
        if random.random() < 0.5:  # the next one dies while this one is being replaced
            continue
        while not is_complete(tree, num_wanted, victim):
            if time.monotonic() > began + PATIENCE_S:
                sys.exit(f"no {kind} has come for {victim}")
            await asyncio.sleep(0.002)
        seconds[kind].append(time.monotonic() - began)
    return counts, seconds


def is_complete(tree: Tree, num_wanted: dict[str, int], victim: psutil.Process) -> bool:
    there = tree.by_kind()
    alive = all(len(each) == num_wanted[kind] for kind, each in there.items())
    return alive and all(victim.pid != each.pid for kind in there for each in there[kind])


async def run(server: "subprocess.Popen[str]", port: int, options: argparse.Namespace) -> bool:
    model = options.bundle.parent.name
    manifest = json.loads((options.bundle / "bundle.json").read_text())
    texts = list(dict.fromkeys(example["text"] for example in manifest["golden_examples"]))[:64]
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        told = await client.translate(texts, model=model)
    load = Load(port, model, {text: each.text for text, each in zip(texts, told, strict=True)})
    tree = Tree(server.pid)
    callers = [asyncio.create_task(load.ask()) for _ in range(options.callers)]
    callers += [asyncio.create_task(load.ask_with_client()) for _ in range(options.callers)]
    await asyncio.sleep(SETTLE_S)
    before, files, shared = tree.memory_bytes(), tree.num_files(), shared_memory()
    counts, seconds = await kill_again_and_again(tree, options.kills)
    await asyncio.sleep(SETTLE_S)
    after, files_after = tree.memory_bytes(), tree.num_files()
    load.is_over = True
    await asyncio.gather(*callers)
    print("killed: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    for kind, each in seconds.items():
        print(
            f"until all were there again, {kind}: median {statistics.median(each):.3f} s, most {max(each):.3f} s"
        )
    print(f"calls that repeat nothing: {dict(load.plain)}")
    print(f"calls with our client: {dict(load.repeated)}")
    print(f"memory of all processes (PSS): {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after")
    print(f"open files: {files} before, {files_after} after")
    left = shared_memory() - shared
    print(f"zombies: {tree.num_zombies()}; left in /dev/shm: {sorted(left) or 'nothing'}")
    bad = set(load.plain) - {"right", "retryable"} | set(load.repeated) - {"right"}
    return not bad and not left and not tree.num_zombies()


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("*")}


def serve(models: Path, overrides: Sequence[str]) -> tuple["subprocess.Popen[str]", int]:
    command = [sys.executable, "-m", "dragoman.server", "--models", str(models), "--log-format", "json"]
    command += ["--port", "0", "--metrics-port", "0", "--set", "engine.lanes_run_in=processes"]
    for override in overrides:
        command += ["--set", override]
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  the process writes it until it ends
    server = subprocess.Popen(command, stderr=log, text=True)
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        log.seek(0)
        for line in log.readlines():
            if '"serving"' in line and line.startswith("{"):
                return server, int(json.loads(line)["port"])
        time.sleep(0.05)
    sys.exit("the server does not serve")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="a translation bundle: MODELS/NAME/VERSION")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--callers", type=int, default=8, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the server")
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as models:
        shutil.copytree(options.bundle, Path(models) / options.bundle.parent.name / "1")
        server, port = serve(Path(models), options.set)
        try:
            is_good = asyncio.run(run(server, port, options))
        finally:
            server.terminate()
            code = server.wait(PATIENCE_S)
    print(f"the server ended with exit code {code}")
    sys.exit(0 if is_good and code == 0 else 1)


if __name__ == "__main__":
    main()
