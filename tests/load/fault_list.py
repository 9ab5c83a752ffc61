"""The faults: what a server each is started with, what happens to it, within which time it must be ready again."""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.integration.certificates import Authority
from tests.integration.raw_http2 import RawClient
from tests.integration.serving import BUNDLES, http_get
from tests.load.cases import STREAM_TRANSLATE
from tests.load.metrics_page import total
from tests.load.scene import Scene

from dragoman.v1 import decoding_pb2, translation_pb2

__all__ = ["FAULTS", "Fault", "NotHere"]

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
STOPPED_S = 1.5
TWO_OF_EACH = ("server.fronts=2", "engine.lanes=2", "engine.lanes_run_in=processes")


class NotHere(Exception):
    """This machine does not allow the fault; the message says why."""


class Fault:
    """One fault.

    Attributes:
        limit_s: within which the server must be ready again.
        is_hidden: whether callers with our client must notice nothing.
    """

    is_hidden = True

    def __init__(self, name: str, limit_s: float) -> None:
        self.name = name
        self.limit_s = limit_s

    def scene(self, folder: Path) -> Scene:
        """The server that it happens to."""
        shutil.copytree(BUNDLES / "spell" / "2", folder / "models" / "spell" / "2")
        return Scene(folder / "models", TWO_OF_EACH)

    async def happens(self, scene: Scene) -> float:
        """Let it happen; returns the time from which the server has to get ready again."""
        raise NotImplementedError

    async def check(self, _: Scene) -> str:
        """What is wrong afterwards, or nothing."""
        return ""


class Killed(Fault):
    """SIGKILL for one process."""

    def __init__(self, kind: str, limit_s: float) -> None:
        super().__init__(f"SIGKILL {kind}", limit_s)
        self._kind = kind
        self.is_hidden = kind != "server"

    async def happens(self, scene: Scene) -> float:
        began_s = time.monotonic()
        scene.tree.by_kind()[self._kind][0].send_signal(signal.SIGKILL)
        if self._kind == "server":  # what a supervisor does
            await asyncio.to_thread(scene.start)
        return began_s


class Stopped(Fault):
    """SIGSTOP for one process, and SIGCONT a moment later."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"SIGSTOP {kind} for {STOPPED_S:g} s", 2.0)
        self._kind = kind

    async def happens(self, scene: Scene) -> float:
        process = scene.tree.by_kind()[self._kind][0]
        process.suspend()
        await asyncio.sleep(STOPPED_S)
        process.resume()
        return time.monotonic()


class FullDisk(Fault):
    """The log goes to a file on a full file system, and to a device that is full; each call writes a line."""

    def __init__(self, where: str) -> None:
        super().__init__(f"disk full: the log's {where}", 2.0)
        self._where = where
        self._mount: Path | None = None

    def scene(self, folder: Path) -> Scene:
        scene = super().scene(folder)
        if self._where == "file":
            self._mount = folder / "full"
            self._mount.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(self._mount)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                raise NotHere("a file system cannot be mounted here")
            (self._mount / "filler").write_bytes(bytes(48 << 10))
        scene.log_to = (self._mount / "log") if self._mount else Path("/dev/full")
        scene.before_close = self._unmount
        return scene

    async def happens(self, _: Scene) -> float:
        await asyncio.sleep(1.0)
        return time.monotonic()

    async def check(self, scene: Scene) -> str:
        if self._mount and (self._mount / "log").stat().st_size < 8 << 10:
            return "the log was not written until the disk was full"
        status, _ = await asyncio.to_thread(http_get, scene.metrics_port, "/healthz")
        return "" if status == 200 else f"/healthz says {status}"

    def _unmount(self) -> None:
        if self._mount:
            subprocess.run(["umount", "--lazy", str(self._mount)], check=False)


class TornBundle(Fault):
    """A newer version whose file is cut off lies in the folder when the engine's host has to load anew."""

    def __init__(self) -> None:
        super().__init__("bundle torn while the host loads", 5.0)

    async def happens(self, scene: Scene) -> float:
        newer = scene.models / "spell" / "3"
        shutil.copytree(scene.models / "spell" / "2", newer)
        graph = newer / "decode.onnx"
        graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
        scene.tree.by_kind()["host"][0].send_signal(signal.SIGKILL)
        return time.monotonic()


class SwappedCertificate(Fault):
    """The server's certificate is replaced under load: new connections get the new one."""

    def __init__(self) -> None:
        super().__init__("certificate swapped", 5.0)

    def scene(self, folder: Path) -> Scene:
        scene = super().scene(folder)
        self._authority = Authority.in_folder(folder)
        return Scene(
            scene.models, (*TWO_OF_EACH, *self._authority.settings), credentials=self._authority.client()
        )

    async def happens(self, scene: Scene) -> float:
        before = await asyncio.to_thread(self._shown, scene.port)
        self._authority.renew()
        for _ in range(100):
            if await asyncio.to_thread(self._shown, scene.port) != before:
                return time.monotonic()
            await asyncio.sleep(0.1)
        raise RuntimeError("new connections get the old certificate after 10 s")

    def _shown(self, port: int) -> str:
        import ssl

        return ssl.get_server_certificate(("127.0.0.1", port))


class ClockJump(Fault):
    """The wall clock jumps an hour forward, and then two back. The monotonic clock does not: Linux never sets it.

    The limit is a wide one: libfaketime has a lock, in which all processes wait for each other at each look at a clock.
    """

    def __init__(self) -> None:
        super().__init__("clock jumps by hours", 15.0)

    def scene(self, folder: Path) -> Scene:
        if not FAKETIME.exists():
            raise NotHere(f"there is no {FAKETIME}: Debian's package libfaketime")
        self._file = folder / "time"
        self._file.write_text("+0")
        scene = super().scene(folder)
        scene.environment = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        return scene

    async def happens(self, _: Scene) -> float:
        for jump in ("+1h", "-1h"):
            self._file.write_text(jump)
            await asyncio.sleep(1.5)  # libfaketime reads the file once a second
        return time.monotonic()


class NeverReads(Fault):
    """Clients that ask for streams and read nothing: windows of zero, and sockets that nobody empties."""

    def __init__(self) -> None:
        super().__init__("40 readers that never read", 2.0)

    async def happens(self, scene: Scene) -> float:
        self._stack = contextlib.ExitStack()
        await asyncio.to_thread(self._ask, scene.port)
        await asyncio.sleep(1.0)
        return time.monotonic()

    def _ask(self, port: int) -> None:
        options = decoding_pb2.DecodingOptions(num_alternatives=20, min_tokens=40)
        request = translation_pb2.TranslateRequest(model="spell", inputs=["12"] * 8, options=options)
        for number in range(40):
            client = self._stack.enter_context(RawClient(port, window=0 if number % 2 else (1 << 31) - 1))
            client.call(STREAM_TRANSLATE, request.SerializeToString())

    async def check(self, scene: Scene) -> str:
        self._stack.close()
        for _ in range(100):
            if not await asyncio.to_thread(_rows, scene):
                return ""
            await asyncio.sleep(0.1)
        return "rows of readers that left are still in use after 10 s"


class Vanished(Fault):
    """Clients in a network namespace whose cable is cut: no packet comes any more, not even the end."""

    NAMES = ("dragoman-load", "dgload0", "dgload1")
    ADDRESSES = ("10.213.77.1", "10.213.77.2")

    def __init__(self) -> None:
        super().__init__("clients vanish: their network is cut", 2.0)

    def scene(self, folder: Path) -> Scene:
        scene = super().scene(folder)
        settings = ("server.host=0.0.0.0", "server.keepalive_time_s=1", "server.keepalive_timeout_s=1")
        scene = Scene(scene.models, (*TWO_OF_EACH, *settings))
        scene.before_close = self._remove
        namespace, ours, theirs = self.NAMES
        for command in (
            f"ip netns add {namespace}",
            f"ip link add {ours} type veth peer name {theirs} netns {namespace}",
            f"ip addr add {self.ADDRESSES[0]}/30 dev {ours}",
            f"ip link set {ours} up",
            f"ip -n {namespace} addr add {self.ADDRESSES[1]}/30 dev {theirs}",
            f"ip -n {namespace} link set {theirs} up",
        ):
            if subprocess.run(command.split(), capture_output=True, check=False).returncode:
                self._remove()
                raise NotHere("a network namespace cannot be made here")
        return scene

    async def happens(self, scene: Scene) -> float:
        # Streams with windows of zero: the calls are there when the cable is cut, and stay.
        program = (
            "import time; from tests.load.fault_list import hold_streams; "
            f"clients = hold_streams('{self.ADDRESSES[0]}', {scene.port}); time.sleep(60)"
        )
        command = ["ip", "netns", "exec", self.NAMES[0], sys.executable, "-c", program]
        self._client = await asyncio.to_thread(subprocess.Popen, command)
        for _ in range(100):
            if _connections(self.ADDRESSES[1]) >= 10:
                break
            await asyncio.sleep(0.1)
        else:
            raise RuntimeError("the clients in the namespace did not connect")
        await asyncio.sleep(0.5)
        await asyncio.to_thread(subprocess.run, ["ip", "link", "set", self.NAMES[1], "down"], check=True)
        return time.monotonic()

    async def check(self, scene: Scene) -> str:
        for _ in range(100):
            if not _connections(self.ADDRESSES[1]) and not await asyncio.to_thread(_rows, scene):
                return ""
            await asyncio.sleep(0.1)
        return f"{_connections(self.ADDRESSES[1])} connections of clients that vanished are held after 10 s"

    def _remove(self) -> None:
        with contextlib.suppress(AttributeError):
            self._client.kill()
            self._client.wait()
        for command in (f"ip netns del {self.NAMES[0]}", f"ip link del {self.NAMES[1]}"):
            subprocess.run(command.split(), capture_output=True, check=False)


def hold_streams(host: str, port: int) -> list[RawClient]:
    """Ten connections with a stream each that its client lets nothing come of."""
    request = translation_pb2.TranslateRequest(model="spell", inputs=["12"])
    clients = []
    for _ in range(10):
        client = RawClient(port, window=0, host=host)
        client.call(STREAM_TRANSLATE, request.SerializeToString())
        clients.append(client)
    return clients


def _connections(address: str) -> int:
    """Connections from `address`, in whatever state but the last ones."""
    listed = subprocess.run(["ss", "-Htn", "dst", address], capture_output=True, text=True, check=True).stdout
    return sum("ESTAB" in line for line in listed.splitlines())


def _rows(scene: Scene) -> float:
    return total(scene.metrics_port, "requests_running", "requests_waiting")


FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Killed("lane", 2.0),
        Killed("host", 5.0),
        Killed("front", 5.0),
        Killed("server", 10.0),
        *(Stopped(kind) for kind in ("lane", "host", "front", "server")),
        FullDisk("device"),
        FullDisk("file"),
        TornBundle(),
        SwappedCertificate(),
        ClockJump(),
        NeverReads(),
        Vanished(),
    )
}
