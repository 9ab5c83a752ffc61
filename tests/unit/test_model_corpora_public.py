import contextlib
import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from dragoman.model.corpora import public
from dragoman.model.corpora.corpus import Pair
from dragoman.model.corpora.load import load_corpus
from dragoman.model.corpora.public import read_multi30k, read_shakespeare
from dragoman.model.corpora.settings import Multi30kSettings, ShakespeareSettings
from dragoman.model.errors import CorpusError, DownloadError
from dragoman.model.recipe import load_recipe

SPLITS = {"train": 29_000, "val": 1_014, "test_2016_flickr": 1_000}

RAW = ["corpus.source=de", "corpus.target=en", "corpus.tokenized=false"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: folder / name)
    monkeypatch.setenv("no_proxy", "*")
    return folder


class Site:
    """The files of a web site and the paths that were asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.url = ""


@pytest.fixture
def site() -> Iterator[Site]:
    served = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            content = served.files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        with contextlib.ExitStack() as stack:
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            yield served


def lines(word: str, count: int) -> bytes:
    return "".join(f"{word} {n}\n" for n in range(count)).encode()


def test_multi30k_is_fetched_once_and_checked(site: Site, cache: Path) -> None:
    for split, count in SPLITS.items():
        for language in ("de", "en"):
            content = gzip.compress(lines(f"{split} {language}", count), compresslevel=1)
            site.files[f"/raw/{split}.{language}.gz"] = content
    settings = Multi30kSettings(kind="multi30k")
    corpus = read_multi30k(settings, source=site.url)
    assert [len(s) for s in (corpus.train, corpus.validation, corpus.test)] == list(SPLITS.values())
    assert list(corpus.train)[3] == Pair("train de 3", "train en 3")
    assert len(site.requests) == 6
    assert read_multi30k(settings, source=site.url) == corpus
    assert len(site.requests) == 6, "the second time comes from the cache"
    assert len(list(cache.rglob("*.gz"))) == 6


def test_the_tokenized_edition_has_its_own_files(site: Site) -> None:
    for split, count in SPLITS.items():
        for language in ("de", "en"):
            site.files[f"/tok/{split}.lc.norm.tok.{language}"] = lines(f"tok {language}", count)
    settings = Multi30kSettings(kind="multi30k", source="en", target="de", tokenized=True)
    assert read_multi30k(settings, source=site.url).test[0] == Pair("tok en 0", "tok de 0")


def test_shakespeare_is_split_as_nanogpt_splits_it(site: Site) -> None:
    text = lines("To be or not", 40_000)
    text = b"." * ((4 - len(text)) % 10) + text  # nine tenths of it is no whole number
    site.files["/input.txt"] = text
    corpus = read_shakespeare(ShakespeareSettings(kind="shakespeare"), source=site.url)
    cut = int(len(text) * 0.9)  # nanoGPT: train_data = data[:int(n*0.9)], val_data = data[int(n*0.9):]
    assert corpus.train == [text[:cut].decode()]
    assert corpus.validation == [text[cut:].decode()]
    assert corpus.held_out == corpus.validation


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines("short", 10), "gave 10 lines where 40000 are expected"),
        (b"", "gave 0 lines where 40000 are expected"),
        (None, r"cannot fetch http://127\.0\.0\.1:\d+/input\.txt: Not Found; give the files with --data DIR"),
    ],
)
def test_what_came_is_checked_and_not_kept(
    site: Site, cache: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        site.files["/input.txt"] = content
    with pytest.raises(DownloadError, match=message):
        read_shakespeare(ShakespeareSettings(kind="shakespeare"), source=site.url)
    assert not list(cache.rglob("*.txt"))


def test_a_damaged_archive_is_not_kept(site: Site, cache: Path) -> None:
    site.files["/raw/train.de.gz"] = b"<html>"
    with pytest.raises(DownloadError, match=r"train\.de\.gz gave no gzip file"):
        read_multi30k(Multi30kSettings(kind="multi30k"), source=site.url)
    assert not list(cache.rglob("*.gz"))


def test_offline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_address[1]  # free again once the block ends
    with pytest.raises(DownloadError, match="Connection refused; give the files with --data DIR"):
        read_shakespeare(ShakespeareSettings(kind="shakespeare"), source=f"http://127.0.0.1:{port}")


def test_a_folder_is_read_plain_or_packed(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / f"{split}.de").write_bytes(lines("de", 5))
        (tmp_path / f"{split}.en.gz").write_bytes(gzip.compress(lines("en", 5)))
    corpus = load_corpus(load_recipe("multi30k", RAW), tmp_path)
    assert corpus.validation == [Pair(f"de {n}", f"en {n}") for n in range(5)]


def test_a_folder_without_the_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no file train\.de or train\.de\.gz in"):
        load_corpus(load_recipe("multi30k", RAW), tmp_path)
    with pytest.raises(CorpusError, match=r"no file input\.txt"):
        load_corpus(load_recipe("shakespeare"), tmp_path)


def test_the_sources_are_the_ones_documented() -> None:
    assert "multi30k/dataset" in public.MULTI30K_SOURCE
    assert "karpathy/char-rnn" in public.SHAKESPEARE_SOURCE
