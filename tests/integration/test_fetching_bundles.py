"""`dragoman models fetch`, from a real web server: whole bundles or nothing, and one line that says why not."""

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trees import tree

from dragoman.cli.main import main

BUNDLE = Path(__file__).parents[1] / "fixtures" / "bundles" / "count" / "2"


def packed(*members: tuple[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = packed(*((path.name, path.read_bytes()) for path in sorted(BUNDLE.iterdir())), mode="w:gz")
FILES = {
    "/good.tar.gz": GOOD,
    "/escaping.tar": packed(("bundle.json", b"{}"), ("../outside", b"no")),
    "/empty.tar": packed(("readme", b"nothing else")),
    "/not-a-tar": b"<html>log in first</html>",
    "/torn.tar.gz": GOOD[: len(GOOD) // 2],
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = FILES.get(self.path)
            self.send_response(404 if content is None else 200)
            # The one that ends too early says so by its length.
            length = len(GOOD) if self.path == "/torn.tar.gz" else len(content or b"")
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_address[1]}"
        finally:
            httpd.shutdown()
            thread.join()


def listed(folder: Path, url: str, sha256: str | None = None, place: str = "count/2") -> list[str]:
    """The command's arguments, for a list of one bundle whose hash is right unless another one is given."""
    if sha256 is None:
        sha256 = hashlib.sha256(FILES.get("/" + url.rpartition("/")[2], b"")).hexdigest()
    file = folder / "models.toml"
    file.write_text(f'["{place}"]\nurl = "{url}"\nsha256 = "{sha256}"\n')
    return ["models", "fetch", str(file), "--out", str(folder / "models")]


def test_a_bundle_is_fetched_once_and_is_what_it_was(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = listed(tmp_path, f"{server}/good.tar.gz")
    assert main(command) == 0
    assert capsys.readouterr().err == f"count/2: {len(GOOD):,} bytes fetched, the hash is right\n"
    assert tree(tmp_path / "models" / "count" / "2") == tree(BUNDLE)
    assert [path.name for path in (tmp_path / "models" / "count").iterdir()] == ["2"]
    assert main(command) == 0
    assert capsys.readouterr().err == "count/2: there already\n"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing", "HTTP status 404"),
        ("escaping.tar", "outside"),
        ("empty.tar", "no bundle.json at its top"),
        ("not-a-tar", "cannot unpack"),
        ("torn.tar.gz", "too early"),
    ],
)
def test_what_is_no_bundle_leaves_nothing_and_says_why(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, message: str
) -> None:
    assert main(listed(tmp_path, f"{server}/{file}")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"{server}/{file}" in line
    assert message in line
    assert not [*(tmp_path / "models" / "count").iterdir()]
    assert not (tmp_path / "models" / "outside").exists()


def test_another_hash_leaves_nothing(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(listed(tmp_path, f"{server}/good.tar.gz", "0" * 64)) == 1
    assert (
        f"its SHA-256 is {hashlib.sha256(GOOD).hexdigest()}, the list says {'0' * 64}"
        in capsys.readouterr().err
    )
    assert not [*(tmp_path / "models" / "count").iterdir()]


def test_nobody_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(listed(tmp_path, "http://127.0.0.1:1/good.tar.gz")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot fetch http://127.0.0.1:1/good.tar.gz: " in line


@pytest.mark.parametrize(
    ("url", "sha256", "place", "message"),
    [
        ("file:///etc/passwd", "0" * 64, "count/2", "no address of http:// or https://"),
        ("http://x/y", "abc", "count/2", "sha256"),
        ("http://x/y", "0" * 64, "../2", '"NAME/VERSION"'),
        ("http://x/y", "0" * 64, "count", '"NAME/VERSION"'),
        ("http://x/y", "0" * 64, "count/new", '"NAME/VERSION"'),
    ],
)
def test_a_wrong_list_is_refused_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, sha256: str, place: str, message: str
) -> None:
    assert main(listed(tmp_path, url, sha256, place)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_something_else_in_the_place_is_left_alone(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mine := tmp_path / "models" / "count" / "2" / "notes").parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main(listed(tmp_path, f"{server}/good.tar.gz")) == 2
    assert "is there and is no bundle" in capsys.readouterr().err
    assert mine.read_text() == "mine"
