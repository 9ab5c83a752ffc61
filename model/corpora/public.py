"""Public corpora, read from a folder that has their files or fetched once into the user's cache.

- Multi30k (Elliott et al. 2016), task 1: github.com/multi30k/dataset. For research, not for commerce.
- Tiny Shakespeare (Karpathy 2015), public domain: github.com/karpathy/char-rnn.
"""

import gzip
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from dragoman.common.files import atomic_write
from dragoman.model.corpora.cleaning import clean
from dragoman.model.corpora.corpus import Corpus, Pair
from dragoman.model.corpora.holding_out import cut_ends
from dragoman.model.corpora.readers import read_documents, read_parallel
from dragoman.model.corpora.report import CorpusReport, Tally
from dragoman.model.corpora.settings import Multi30kSettings, ShakespeareSettings
from dragoman.model.corpora.sources import SourceFile
from dragoman.model.errors import CorpusError, DownloadError

__all__ = ["MULTI30K_SOURCE", "SHAKESPEARE_SOURCE", "read_multi30k", "read_shakespeare"]

MULTI30K_SOURCE: Final = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1"
SHAKESPEARE_SOURCE: Final = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare"

_MULTI30K_SPLITS: Final = {"train": 29_000, "val": 1_014, "test_2016_flickr": 1_000}  # name, lines
_SHAKESPEARE_LINES: Final = 40_000
_TIMEOUT_S: Final = 30.0
_CHUNK_BYTES: Final = 1 << 16


def read_multi30k(settings: Multi30kSettings, *, source: str = MULTI30K_SOURCE) -> Corpus[Pair]:
    """Captions with their translations; the test split is `test_2016_flickr`.

    Raises:
        CorpusError: the folder lacks a file, or two files differ in their number of lines.
        DownloadError: there is no folder and the files could not be fetched from `source`.
    """
    suffix = ".lc.norm.tok" if settings.tokenized else ""
    splits: list[list[Pair]] = []
    report, read = CorpusReport("pairs"), list[SourceFile]()
    for split, num_lines in _MULTI30K_SPLITS.items():
        files = list[SourceFile]()
        for language in (settings.source, settings.target):
            name = f"{split}{suffix}.{language}"
            if settings.folder is not None:
                files.append(_find(Path(settings.folder), name))
            else:
                url = f"{source}/tok/{name}" if settings.tokenized else f"{source}/raw/{name}.gz"
                files.append(_fetch("multi30k", url, num_lines))
        read += files
        tally = Tally()  # the published files need no cleaning; a folder may hold others
        pairs = read_parallel(files[0], files[1], settings.max_line_bytes)
        splits.append(list(clean(pairs, tally, drop_duplicates=settings.drop_duplicates)))
        report += tally.report("pairs")
    train, validation, test = splits
    return Corpus("multi30k", train, validation, test, report, tuple(read))


def read_shakespeare(settings: ShakespeareSettings, *, source: str = SHAKESPEARE_SOURCE) -> Corpus[str]:
    """One long document, split as nanoGPT splits it: the first 90 % train, the last 10 % validate.

    Raises:
        CorpusError: the folder has no `input.txt`.
        DownloadError: there is no folder and the file could not be fetched from `source`.
    """
    if settings.folder is not None:
        file = _find(Path(settings.folder), "input.txt")
    else:
        file = _fetch("tinyshakespeare", f"{source}/input.txt", _SHAKESPEARE_LINES)
    tally = Tally()
    documents = read_documents([file], settings.max_line_bytes)
    text = "".join(clean(documents, tally, drop_duplicates=settings.drop_duplicates))
    train, validation, _ = cut_ends(text, 0.1)
    return Corpus("shakespeare", [train], [validation], [], tally.report("documents"), (file,))


def _find(folder: Path, name: str) -> SourceFile:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return SourceFile(candidate, candidate.name)
    raise CorpusError(f"no file {name} or {name}.gz in {folder}")


def _fetch(corpus: str, url: str, num_lines: int) -> SourceFile:
    """The cached copy of `url`, fetched and checked if there is none yet."""
    path = platformdirs.user_cache_path("dragoman") / corpus / url.rsplit("/", 1)[1]
    if path.is_file():
        return SourceFile(path, path.name)
    content = _download(url)
    try:
        found = (gzip.decompress(content) if path.suffix == ".gz" else content).count(b"\n")
    except (gzip.BadGzipFile, EOFError) as error:
        raise DownloadError(f"{url} gave no gzip file: {error}") from error
    if found != num_lines:
        raise DownloadError(f"{url} gave {found} lines where {num_lines} are expected")
    atomic_write(path, content)
    return SourceFile(path, path.name)


def _download(url: str) -> bytes:
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn())
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response,  # noqa: S310  the two sources above
            Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        ):
            length = response.headers.get("Content-Length")
            task = progress.add_task(url.rsplit("/", 1)[1], total=int(length) if length else None)
            content = bytearray()
            while chunk := response.read(_CHUNK_BYTES):
                content += chunk
                progress.update(task, completed=len(content))
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise DownloadError(
            f"cannot fetch {url}: {_reason(error)}; give the files with --data DIR"
        ) from error
    return bytes(content)


def _reason(error: Exception) -> str:
    """The part of an error a person can use: `Not Found`, `Name or service not known`, `timed out`."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__)
