"""The files a corpus is read from: packed or plain, by path, by pattern, or through standard input."""

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
from typing import BinaryIO, Final

from model.errors import CorpusError

__all__ = ["STANDARD_INPUT", "SourceFile", "SourceFiles"]

STANDARD_INPUT: Final = "-"

_MAGIC: Final = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\x00": ".xz"}  # RFC 1952; the .xz file format, 2.1.1.1
_UNPACK: Final[dict[str, Callable[[Path], io.BufferedIOBase]]] = {".gz": gzip.GzipFile, ".xz": lzma.LZMAFile}


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read, any number of times.

    Attributes:
        path: where it is; `.gz` and `.xz` are unpacked.
        name: what to call it: as the recipe does, or `standard input`.
    """

    path: Path
    name: str

    @contextlib.contextmanager
    def open(self) -> Iterator[io.BufferedIOBase]:
        """The bytes, unpacked as they are read.

        Raises:
            CorpusError: it is missing, or damaged where the block has come to.
        """
        unpack = _UNPACK.get(self.path.suffix)
        try:
            with self.path.open("rb") if unpack is None else unpack(self.path) as file:
                yield file
        except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
            kind = "gzip" if self.path.suffix == ".gz" else "xz"
            raise CorpusError(f"{self} is not a whole {kind} file: {error}") from error
        except OSError as error:
            raise CorpusError(f"cannot read {self}: {error.strerror}") from error

    def __str__(self) -> str:
        return self.name if self.name == "standard input" else str(self.path)


class SourceFiles:
    """Finds what a recipe names, within a folder; `-` is standard input, which only one name can be.

    Standard input can be read once, a corpus is read several times: it is copied to a temporary file, which
    goes when its `SourceFile` does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_read_standard_input = False

    def file(self, name: str) -> SourceFile:
        """The file of this name; it need not be there.

        Raises:
            CorpusError: it is `-`, and standard input is a terminal, closed or already read.
        """
        return self._standard_input() if name == STANDARD_INPUT else SourceFile(self._folder / name, name)

    def matching(self, pattern: str) -> list[SourceFile]:
        """The file of this name or, in order of path, all that the pattern fits.

        Raises:
            CorpusError: there is none; or as `file`.
        """
        if pattern == STANDARD_INPUT:
            return [self._standard_input()]
        exact = self._folder / pattern
        if exact.is_file() or Path(pattern).is_absolute():
            return [SourceFile(exact, pattern)]
        paths = sorted(path for path in self._folder.glob(pattern) if path.is_file())
        if not paths:
            raise CorpusError(f"no file {pattern} in {self._folder}")
        return [SourceFile(path, path.relative_to(self._folder).as_posix()) for path in paths]

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
    suffix = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), "")
    handle, name = tempfile.mkstemp(prefix="dragoman-corpus-", suffix=suffix)
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
