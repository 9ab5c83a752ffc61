"""The serving image, built and run as a pod runs it: read-only, as user 10001, without any capability.

`make image-check` runs it. It takes minutes where nothing is built yet, and needs root, and Debian's packages buildah
and mmdebstrap.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.deploy.test_image_requirements import pins
from tools.build_image import VERSION, BaseImagesNotMade, build_image, buildah

from dragoman import Client

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "tests" / "fixtures" / "bundles"
TAG = "localhost/dragoman:checked"
NAMESPACES = ("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
POLL_S = 0.01
START_PATIENCE_S = 60.0
STOP_PATIENCE_S = 30.0
"""Longer than any start, shorter than a pod's grace period."""

pytestmark = pytest.mark.skipif(
    os.environ.get("IMAGE_CHECK") != "1", reason="builds an image, which takes minutes: make image-check"
)


@dataclass(frozen=True)
class Image:
    """A built image, its files unpacked."""

    root: Path
    config: dict[str, Any]
    history: list[dict[str, Any]]

    def command(self, *command: str) -> list[str]:
        """What runs `command` in it as process 1."""
        launcher = [sys.executable, str(Path(__file__).with_name("image_process.py"))]
        return [*NAMESPACES, *launcher, *map(str, (self.root, BUNDLES, ROOT / "deploy" / "base")), *command]

    @property
    def environment(self) -> dict[str, str]:
        return dict(each.split("=", 1) for each in self.config["Env"])

    def python(self, program: str) -> str:
        """What a Python program prints in it."""
        command = self.command("python", "-c", program)
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=self.environment
        ).stdout


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    for tool in ("buildah", "mmdebstrap", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: the image is not built")
    if os.geteuid() != 0:
        pytest.skip("only root can unpack and run the image")
    for probe in (["buildah", "info"], [*NAMESPACES, "true"]):
        if subprocess.run(probe, check=False, capture_output=True).returncode != 0:
            pytest.skip(f"`{' '.join(probe)}` fails here: the image is not built")
    try:
        build_image("serve", TAG, engine="buildah", base="debian")
    except BaseImagesNotMade as error:
        pytest.skip(f"the image is not built: {error}")
    container = buildah(None, "from", "--pull-never", TAG)
    try:
        mounted = buildah(None, "mount", container)
        described = json.loads(buildah(None, "inspect", "--type", "image", TAG))["OCIv1"]
        yield Image(Path(mounted), described["config"], described["history"])
    finally:
        buildah(None, "rm", container)


@contextmanager
def started(image: Image, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the image's entry point with `arguments`."""
    command = image.command(*image.config["Entrypoint"], *arguments)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=image.environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    deadline = time.monotonic() + START_PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := condition():
            return found
        time.sleep(POLL_S)
    raise AssertionError(f"exit code {process.poll()}: {log.read_text()}")


def serving_port(log: Path) -> int | None:
    for line in log.read_text().splitlines():
        if line.startswith("{") and (event := json.loads(line))["event"] == "serving":
            return int(event["port"])
    return None


def process_one(process: subprocess.Popen[bytes]) -> psutil.Process | None:
    """Process 1 of the namespace that `process` made."""
    return next(map(psutil.Process, children(process.pid)), None)


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_it_answers_where_nothing_can_be_written_and_leaves_at_sigterm_with_0(
    image: Image, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    arguments = [
        "--config",
        "/etc/dragoman/server.toml",
        "--models",
        "/models",
        "--set",
        "server.drain_delay_s=0",
    ]
    arguments += ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    with started(image, log, *arguments) as process:
        port = wait_for(lambda: serving_port(log), process, log)
        with Client(f"127.0.0.1:{port}") as client:
            (answer,) = client.translate("4071", model="spell")
        assert answer.text == "four zero seven one"
        first = process_one(process)
        assert first is not None
        for each in (first, *first.children(recursive=True)):
            status = Path(f"/proc/{each.pid}/status").read_text()
            assert set(re.findall(r"^Cap\w+:\s+(\w+)$", status, re.MULTILINE)) == {"0" * 16}
            assert re.findall(r"^[UG]id:\s+(.*)$", status, re.MULTILINE) == ["10001\t10001\t10001\t10001"] * 2
        first.send_signal(signal.SIGTERM)
        assert process.wait(STOP_PATIENCE_S) == 0, log.read_text()


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_sigterm_early_in_the_start_ends_it_as_process_1(
    image: Image, tmp_path: Path, after_s: float
) -> None:
    """`after_s` counts from when tini starts the server: then it waits for signals. The kernel drops those before."""
    log = tmp_path / "log"

    def first_with_child() -> psutil.Process | None:
        first = process_one(process)
        return first if first is not None and first.name() == "tini" and children(first.pid) else None

    with started(image, log, "--models", "/models", "--port", "0", "--metrics-port", "0") as process:
        first = wait_for(first_with_child, process, log)
        time.sleep(after_s)
        first.send_signal(signal.SIGTERM)
        # 143 by the signal itself before the server's handler is there, 0 after that.
        assert process.wait(STOP_PATIENCE_S) in {0, 128 + signal.SIGTERM}


def test_no_path_can_be_written_and_no_shell_be_run(image: Image) -> None:
    program = (
        "import os, shutil\n"
        "for folder, folders, files in os.walk('/'):\n"
        "    if folder == '/': folders.remove('proc')\n"
        "    for path in (folder, *(os.path.join(folder, name) for name in files)):\n"
        "        if os.access(path, os.W_OK) and not os.path.islink(path): print(path)\n"
        "print(*(shutil.which(name) for name in ('sh', 'bash', 'dash')))\n"
    )
    *writable, shells = image.python(program).splitlines()
    assert sorted(writable) == ["/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"]
    assert shells == "None None None"


def test_it_has_the_pinned_distributions_and_no_pip(image: Image) -> None:
    program = (
        "import importlib.metadata\n"
        "for each in importlib.metadata.distributions(): print(each.name.lower().replace('_', '-'), each.version)"
    )
    installed = dict(line.split() for line in image.python(program).splitlines())
    assert installed == {**pins("serve"), "dragoman": VERSION}
    assert not [each for each in image.root.rglob("pip*") if each.name in {"pip", "pip3"}]
    assert not list(image.root.rglob("ensurepip"))


def test_no_file_gives_rights_to_its_caller(image: Image) -> None:
    files = (each for each in image.root.rglob("*") if each.is_file() and not each.is_symlink())
    assert not [each for each in files if each.stat().st_mode & 0o6000]


def test_every_module_of_a_start_is_compiled(image: Image) -> None:
    """Nothing can be written at run time: a module that is not compiled would be compiled at each start."""
    program = (
        "import os, sys\n"
        "import dragoman.cli.app, dragoman.server.app, dragoman.server.serving, dragoman.server.engine.worker\n"
        "for each in sys.modules.values():\n"
        "    cached = getattr(each, '__cached__', None)\n"  # None: frozen into the interpreter, or native
        "    if cached and not os.path.exists(cached): print(cached)\n"
    )
    assert image.python(program) == ""


def test_dragoman_is_in_a_small_layer_above_its_dependencies(image: Image) -> None:
    made_by = [each["created_by"] for each in image.history if not each.get("empty_layer")]
    assert [each.split(" in ")[-1].strip() for each in made_by[-2:]] == ["/opt/dragoman", "/"]


def test_labels_say_what_it_is(image: Image) -> None:
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.version"] == VERSION
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", labels["org.opencontainers.image.revision"])
    assert image.config["User"] == "10001:10001"
