"""gRPC on a Unix domain socket: `--host unix:PATH`."""

import os
import signal
import socket
from pathlib import Path

import grpc
import pytest
from tests.integration.child_server import running
from tests.integration.serving import BUNDLES, PATIENCE_S, http_get

from dragoman.server.errors import AddressError
from dragoman.server.fronts.grpc.unix_sockets import SocketFile, check_socket_free
from dragoman.v1 import translation_pb2, translation_pb2_grpc

Request = translation_pb2.TranslateRequest


def options(host: str) -> list[str]:
    return ["--models", str(BUNDLES), "--host", host, "--metrics-port", "0"]


def ask(target: str) -> str:
    with grpc.insecure_channel(target) as channel:
        stub = translation_pb2_grpc.TranslationServiceStub(channel)
        return stub.Translate(Request(model="spell", inputs=["12"]), timeout=PATIENCE_S).translations[0].text


def test_it_serves_drains_and_removes_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running(*options(f"unix:{path}")) as server:
        serving = server.wait_for("serving")
        assert (serving["host"], serving["port"]) == (f"unix:{path}", 0)
        assert ask(f"unix:{path}") == ask(f"unix://{path}") == "one two"
        assert http_get(serving["metrics_port"], "/readyz") == (200, "serving\n")
        with running(*options(f"unix:{path}")) as second:
            assert second.wait_for_end() == 1
            assert second.events[-1]["error"] == f"cannot serve gRPC on unix:{path}: a server listens there"
        assert ask(f"unix:{path}") == "one two"
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 0
    assert not path.exists()


def test_the_socket_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running(*options(f"unix:{path}")) as server:
        server.wait_for("serving")
        server.process.kill()
        server.process.wait()
    assert path.is_socket()
    with running(*options(f"unix:{path}")) as server:
        server.wait_for("serving")
        assert ask(f"unix:{path}") == "one two"


def test_an_abstract_socket() -> None:
    host = f"unix-abstract:dragoman-test-{os.getpid()}"
    with running(*options(host)) as server:
        server.wait_for("serving")
        assert ask(host) == "one two"
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 0


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_no_socket_stays(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "thesis"
    if kind == "file":
        path.write_text("years of work")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AddressError, match="the path exists and is not a socket"):
        check_socket_free(f"unix:{path}")
    assert path.is_symlink() or path.exists()


def test_wrong_paths_are_one_line(tmp_path: Path) -> None:
    for host, reason in (
        (f"unix:{tmp_path / 'nope' / 's'}", "No such file or directory"),
        (f"unix:{tmp_path / ('s' * 200)}", "AF_UNIX path too long"),
        ("unix:", "expected unix:PATH"),
    ):
        with pytest.raises(AddressError, match=reason):
            check_socket_free(host)


def test_a_server_whose_queue_of_connections_is_full_keeps_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(path))
        listening.listen(0)
        client.connect(str(path))
        with pytest.raises(AddressError, match="a server listens there"):
            check_socket_free(f"unix:{path}")
    assert path.exists()


def test_a_file_that_took_the_place_of_the_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        file = SocketFile.of(f"unix:{path}")
        assert file is not None
        path.rename(tmp_path / "moved")  # its inode stays in use
        path.write_text("mine")
        file.remove()
    assert path.read_text() == "mine"
    assert SocketFile.of("127.0.0.1") is None
