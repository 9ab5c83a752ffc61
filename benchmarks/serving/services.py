"""The services that are compared, each started as a process of its own that speaks gRPC on the loopback."""

import base64
import contextlib
import dataclasses
import json
import os
import shutil
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import grpc
from benchmarks.serving.load import Service
from benchmarks.serving.peers import PEERS_FOLDER

from dragoman.cli.server_process import running_server
from dragoman.v1 import translation_pb2

__all__ = [
    "PeerModel",
    "ctranslate2_service",
    "dragoman_requests",
    "dragoman_service",
    "triton_requests",
    "triton_service",
]

TRITON_MODEL: Final = "translate"
_START_TIMEOUT_S: Final = 120.0
_COMPUTE_TYPES: Final = {"fp32": "float32", "int8": "int8"}


@dataclasses.dataclass(frozen=True)
class PeerModel:
    """What a CTranslate2 service translates with.

    Attributes:
        python: the interpreter of the peers' environment.
        folder: the converted model.
    """

    python: Path
    folder: Path
    tokenizer: Path
    precision: str
    max_tokens: int
    num_cores: int

    def settings(self, inter_threads: int) -> dict[str, Any]:
        """The arguments of `TextTranslator`."""
        return {
            "folder": str(self.folder),
            "tokenizer": str(self.tokenizer),
            "compute_type": _COMPUTE_TYPES[self.precision],
            "inter_threads": inter_threads,
            "max_tokens": self.max_tokens,
        }


@contextlib.contextmanager
def dragoman_service(models: Path, model: str, texts: Sequence[str]) -> Iterator[Service]:
    """`dragoman serve`, as it comes."""
    with running_server(models) as server:
        requests = dragoman_requests(model, texts, 1)
        yield Service("dragoman", server.target, "/dragoman.v1.TranslationService/Translate", requests)
        server.stop()


def dragoman_requests(model: str, texts: Sequence[str], num_texts: int) -> list[bytes]:
    """Messages of `num_texts` texts each; what is left over at the end is left out."""
    calls = [texts[start : start + num_texts] for start in range(0, len(texts) - num_texts + 1, num_texts)]
    return [translation_pb2.TranslateRequest(model=model, inputs=call).SerializeToString() for call in calls]


@contextlib.contextmanager
def ctranslate2_service(model: PeerModel, texts: Sequence[str]) -> Iterator[Service]:
    """CTranslate2 behind grpc.aio, a worker a core."""
    command = [str(model.python), str(PEERS_FOLDER / "ctranslate2_grpc.py")]
    command.append(json.dumps(model.settings(model.num_cores)))
    with _running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip() or sys.exit("ctranslate2_grpc.py did not start")
        name = "CTranslate2, grpc.aio"
        yield Service(name, f"127.0.0.1:{port}", "/peer.Translation/Translate", [t.encode() for t in texts])


@contextlib.contextmanager
def triton_service(
    model: PeerModel, folder: Path, texts: Sequence[str], queue_policy: str = ""
) -> Iterator[Service]:
    """CTranslate2 in Triton's Python backend, an instance a core, with dynamic batching.

    `queue_policy` is a `ModelQueuePolicy` in protobuf's text format; "": the queue has no bounds.
    """
    setup = _triton_setup(model.python, [[text] for text in texts])
    _write_repository(folder / "models" / TRITON_MODEL, model, queue_policy)
    shutil.copytree(setup["backends"], folder / "backends")
    shutil.copy2(setup["stub"], folder / "backends" / "python")
    port = _free_port()
    command = [setup["server"], f"--model-repository={folder / 'models'}", f"--grpc-port={port}"]
    command += [f"--backend-directory={folder / 'backends'}", "--grpc-address=127.0.0.1"]
    command += ["--allow-http=false", "--allow-metrics=false", "--log-info=false", "--log-warning=false"]
    environment = {
        "LD_LIBRARY_PATH": os.pathsep.join(setup["libraries"]),
        # Its interpreter starts isolated, without PYTHONPATH: it takes for its own the environment it finds here.
        "PATH": os.pathsep.join([str(model.python.parent.absolute()), os.environ["PATH"]]),
    }
    requests = _messages(setup)
    method = "/inference.GRPCInferenceService/ModelInfer"
    service = Service("CTranslate2, Triton", f"127.0.0.1:{port}", method, requests)
    log = folder / "log"
    with (
        log.open("w") as file,
        _running(command, stdout=file, stderr=file, environment=environment) as process,
    ):
        if not _answers(service, process):
            sys.exit(f"{service.name} did not start:\n{log.read_text()}")
        yield dataclasses.replace(service, pid=process.pid)


def triton_requests(python: Path, calls: Sequence[Sequence[str]]) -> list[bytes]:
    """Messages to `triton_service`, of several texts each."""
    return _messages(_triton_setup(python, calls))


def _triton_setup(python: Path, calls: Sequence[Sequence[str]]) -> dict[str, Any]:
    command = [str(python), str(PEERS_FOLDER / "triton_setup.py"), TRITON_MODEL]
    answer = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, check=False)
    if answer.returncode:
        sys.exit(f"triton_setup.py failed: {answer.stderr}")
    setup: dict[str, Any] = json.loads(answer.stdout)
    return setup


def _messages(setup: Mapping[str, Any]) -> list[bytes]:
    return [base64.b64decode(one) for one in setup["requests"]]


def _write_repository(folder: Path, model: PeerModel, queue_policy: str = "") -> None:
    (folder / "1").mkdir(parents=True)
    for name in ("triton_model/model.py", "ctranslate2_text.py"):
        shutil.copy2(PEERS_FOLDER / name, folder / "1")
    template = string.Template((PEERS_FOLDER / "triton_model" / "config.pbtxt").read_text(encoding="utf-8"))
    settings = json.dumps(
        json.dumps(model.settings(inter_threads=1))
    )  # a string of text format is one of JSON
    queue = f"default_queue_policy {{ {queue_policy} }}" if queue_policy else ""
    text = template.substitute(num_instances=model.num_cores, settings=settings, queue=queue)
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _running(
    command: Sequence[str],
    *,
    stdout: int | IO[str],
    stderr: IO[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        command, stdout=stdout, stderr=stderr, env={**os.environ, **environment}, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _answers(service: Service, process: "subprocess.Popen[str]") -> bool:
    """Wait for its first answer: it listens before its model is loaded."""
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    with grpc.insecure_channel(service.target) as channel:
        call: Any = channel.unary_unary(service.method)
        while process.poll() is None and time.monotonic() < deadline_s:
            try:
                call(service.requests[0], timeout=5.0)
            except grpc.RpcError:
                time.sleep(0.2)
            else:
                return True
    return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
