"""The files a corpus is read from: packed or plain, by path, by pattern, or through standard input."""

import codecs
import contextlib
import dataclasses
import gzip
import io
import lzma
import os
import shutil
import sys
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self

from dragoman.model.errors import CorpusError

__all__ = ["STANDARD_INPUT", "SourceFile", "SourceFiles"]

STANDARD_INPUT: Final = "-"

_MAGIC: Final = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\x00": ".xz"}  # RFC 1952; the .xz file format, 2.1.1.1
_UNPACK: Final[dict[str, Callable[[Path], io.BufferedIOBase]]] = {".gz": gzip.GzipFile, ".xz": lzma.LZMAFile}
_OTHERS: Final = {  # what would only be lines that are not UTF-8: how it begins, what it is, what to do
    b"BZh91AY&SY": ("packed by bzip2", "unpack it, or pack it as .gz or .xz"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "unpack it, or pack it as .gz or .xz"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"PAR1": ("Parquet", 'read it with corpus.kind = "parquet"'),
    codecs.BOM_UTF16_LE: ("UTF-16 text", "convert it to UTF-8, as in `iconv -f UTF-16 -t UTF-8`"),
    codecs.BOM_UTF16_BE: ("UTF-16 text", "convert it to UTF-8, as in `iconv -f UTF-16 -t UTF-8`"),
}
_NUM_MAGIC_BYTES: Final = 10


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read, any number of times.

    Attributes:
        path: where it is. Files packed as `.gz` or `.xz` are unpacked, whatever they are called.
        name: what to call it: as the recipe does, or `standard input`.
        found: its size and the time of its last writing when it was found, before it was read; None where unknown.
    """

    path: Path
    name: str
    found: tuple[int, int] | None = None

    @classmethod
    def at(cls, path: Path, name: str) -> Self:
        """Return the file at `path`, which need not be there."""
        try:
            status = path.stat()
        except (OSError, ValueError):  # NUL in a path
            return cls(path, name)
        return cls(path, name, (status.st_size, status.st_mtime_ns))

    @contextlib.contextmanager
    def open(self) -> Iterator[io.BufferedIOBase]:
        """The bytes, unpacked as they are read.

        Raises:
            CorpusError: it is missing, of another kind, or damaged where the block has come to.
        """
        packed = self._packed_as()
        unpack = _UNPACK.get(packed)
        try:
            with self.path.open("rb") if unpack is None else unpack(self.path) as file:
                yield file
        except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
            kind = "gzip" if packed == ".gz" else "xz"
            raise CorpusError(f"{self} is not a whole {kind} file: {error}") from error
        except OSError as error:
            raise CorpusError(f"cannot read {self}: {error.strerror}") from error

    def _packed_as(self) -> str:
        """What the file is packed as, `.gz` or `.xz`: its content says it, or else its name. `` is plain text.

        Raises:
            CorpusError: it cannot be read, can be read only once, or is known not to be text.
        """
        try:
            # Opening a pipe waits until somebody writes into it, which may be never.
            if self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
                raise CorpusError(
                    f"{self} is no regular file: a corpus is read several times; "
                    'name a file, or give it as standard input, "-"'
                )
            with self.path.open("rb") as file:
                start = file.read(_NUM_MAGIC_BYTES)
        except OSError as error:
            raise CorpusError(f"cannot read {self}: {error.strerror}") from error
        except ValueError as error:  # NUL in a path
            raise CorpusError(f"cannot read {str(self)!r}: {error}") from error
        for magic, (kind, advice) in _OTHERS.items():
            if start.startswith(magic):
                raise CorpusError(f"{self} is {kind}, not plain text: {advice}")
        return _packing(start) or self.path.suffix

    def __str__(self) -> str:
        return self.name if self.name == "standard input" else str(self.path)


class SourceFiles:
    """Finds what a recipe names, within a folder; `-` is standard input, which only one name can be.

    Standard input can be read once, a corpus is read several times: it is copied to a temporary file, which
    goes when its `SourceFile` does.

    Attributes:
        found: all files that were asked for so far.
    """

    def __init__(self, folder: Path) -> None:
        self.found: list[SourceFile] = []
        self._folder = folder
        self._has_read_standard_input = False

    def file(self, name: str) -> SourceFile:
        """The file of this name; it need not be there.

        Raises:
            CorpusError: it is `-`, and standard input is a terminal, closed or already read.
        """
        file = self._standard_input() if name == STANDARD_INPUT else SourceFile.at(self._path(name), name)
        self.found.append(file)
        return file

    def matching(self, pattern: str) -> list[SourceFile]:
        """The file of this name or, in order of path, all that the pattern fits.

        Raises:
            CorpusError: there is none, or the pattern cannot be one; or as `file`.
        """
        files = [self._standard_input()] if pattern == STANDARD_INPUT else self._matching(pattern)
        self.found += files
        return files

    def _matching(self, pattern: str) -> list[SourceFile]:
        path = self._path(pattern)
        if path.is_dir():
            raise CorpusError(f"{pattern!r} is the folder {path}, not a file: name files, as in '*.txt'")
        if path.exists():  # whatever its name looks like
            return [SourceFile.at(path, pattern)]
        is_relative = path.is_relative_to(self._folder)
        root = self._folder if is_relative else Path(path.anchor)
        try:
            found = sorted(match for match in root.glob(str(path.relative_to(root))) if match.is_file())
        except ValueError as error:  # `**.txt`
            raise CorpusError(f"{pattern!r} is no pattern of files: {error}") from error
        if not found:
            raise CorpusError(f"no file {pattern}" + (f" in {self._folder}" if is_relative else ""))
        return [
            SourceFile.at(match, match.relative_to(root).as_posix() if is_relative else str(match))
            for match in found
        ]

    def _path(self, name: str) -> Path:
        """Where a name is: in the folder, or in a home folder where it begins with `~`."""
        path = self._folder / name
        if name.startswith("~") and not path.exists():
            with contextlib.suppress(RuntimeError):  # there is no such user
                return Path(name).expanduser()
        return path

    def _standard_input(self) -> SourceFile:
        if self._has_read_standard_input:
            raise CorpusError('only one file of a corpus can be "-": standard input is read once')
        if sys.stdin is None or sys.stdin.closed:
            raise CorpusError('the corpus is to come through standard input ("-"), which is closed')
        if sys.stdin.isatty():
            raise CorpusError(
                'the corpus is to come through standard input ("-"), which is a terminal: '
                "pipe it in, as in `dragoman COMMAND ... < FILE`"
            )
        self._has_read_standard_input = True
        file = SourceFile(_spool(sys.stdin.buffer), "standard input")
        weakref.finalize(file, file.path.unlink, missing_ok=True)  # at the interpreter's end at the latest
        return file


def _spool(stream: BinaryIO) -> Path:
    """Copy a stream to a temporary file, named by how it is packed."""
    start = stream.read(8)
    handle, name = tempfile.mkstemp(prefix="dragoman-corpus-", suffix=_packing(start))
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(start)
            shutil.copyfileobj(stream, file, length=1 << 20)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise CorpusError(f"cannot keep standard input in {path.parent}: {error.strerror}") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _packing(start: bytes) -> str:
    """The suffix that files of this beginning have; empty for all that is not packed."""
    return next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), "")
