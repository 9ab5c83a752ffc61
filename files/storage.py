"""Files of a local folder or an object store, by `pyarrow.fs`: found, read, and written whole or not at all.

A place is a path, or a URI that pyarrow or fsspec knows: `s3://bucket/data`, `gs://...`, `fsspec+az://...`.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import ArrowException, fs

from dragoman.common.errors import OperationError, UsageError

__all__ = ["Folder", "InputFile", "find_inputs", "named_errors"]

_HIDDEN = (".", "_")
"""A file whose name begins so is no data: markers and temporary files of other tools."""


@dataclass(frozen=True, eq=False)
class InputFile:
    """A file to read.

    Attributes:
        name: as messages name it.
        store: where it is.
        path: its path there.
        place: its path below the folder that was named; its own name where it was named itself.
        num_bytes: its size.
        modified_ns: when it was last written; None where the store does not say it.
    """

    name: str
    store: Any
    path: str
    place: PurePosixPath
    num_bytes: int
    modified_ns: int | None

    def check_unchanged(self) -> None:
        """Refuse a file that was written since it was found.

        Raises:
            OperationError: it has another size or time now, or has gone.
        """
        with named_errors(self.name):
            now = self.store.get_file_info(self.path)
        if (now.size, now.mtime_ns) != (self.num_bytes, self.modified_ns):
            raise OperationError(f"{self.name} was changed while it was read")


class Folder:
    """A folder to write to, which may be made."""

    def __init__(self, name: str) -> None:
        """Find the folder `name`, a path or a URI.

        Raises:
            UsageError: no store is known for it, or it is a file.
        """
        self.name = name.rstrip("/") or "/"
        self._store, self._path = _resolve(self.name)
        self.is_local = isinstance(self._store, fs.LocalFileSystem)
        with named_errors(name):
            info = self._store.get_file_info(self._path)
        if info.type == fs.FileType.File:
            raise UsageError(f"{name} is a file: --out names a folder")

    def __str__(self) -> str:
        return self.name

    def holds(self, file: InputFile) -> bool:
        """Whether `file` lies in this folder."""
        return self._store.equals(file.store) and file.path.startswith(f"{self._path.rstrip('/')}/")

    def files(self, below: str = "") -> dict[str, int]:
        """Paths of all files below this folder, and their sizes."""
        root = self._join(below)
        with named_errors(self.name):
            found = self._store.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        prefix = self._path.rstrip("/") + "/"
        return {each.path.removeprefix(prefix): each.size for each in found if each.type == fs.FileType.File}

    def read(self, path: str) -> bytes | None:
        """A file's content; None where there is none."""
        with named_errors(f"{self.name}/{path}"):
            if self._store.get_file_info(self._join(path)).type == fs.FileType.NotFound:
                return None
            with self._store.open_input_file(self._join(path)) as file:
                content: bytes = file.read()
                return content

    def make(self, path: str) -> None:
        """Make a folder below this one."""
        with named_errors(f"{self.name}/{path}".rstrip("/")):
            self._store.create_dir(self._join(path), recursive=True)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._store.delete_file(self._join(path))

    def local_path(self, path: str) -> Path:
        """Where a file is on this machine, for a local folder."""
        assert self.is_local, "only such a folder has paths"
        return Path(self._join(path))

    @contextlib.contextmanager
    def new_file(self, path: str, temporary: str) -> Iterator[Any]:
        """Give a file to write that becomes `path`, whole, when the block ends well. Replaces what was there.

        Args:
            path: below this folder.
            temporary: beginning of the file's path until it is whole.

        Raises:
            OperationError: it cannot be written; nothing of it stays.
        """
        scratch = f"{temporary}{secrets.token_hex(4)}"
        with named_errors(f"{self.name}/{path}"):
            self.make(os.path.dirname(path))  # noqa: PTH120  a path in a store
            try:
                with self._store.open_output_stream(self._join(scratch)) as stream:
                    yield stream
                if self.is_local:
                    _flush(self.local_path(scratch))
                self._store.move(self._join(scratch), self._join(path))
                if self.is_local:
                    _flush(self.local_path(path).parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    self.remove(scratch)
                raise

    def _join(self, path: str) -> str:
        return f"{self._path.rstrip('/')}/{path}".rstrip("/") or "/"


def find_inputs(names: Sequence[str], suffixes: Sequence[str]) -> list[InputFile]:
    """All files that `names` mean, by their paths: files, and folders of files whose names end with one of `suffixes`.

    Raises:
        UsageError: a file is not there, a folder holds none, or a file is named twice.
    """
    files: dict[str, InputFile] = {}
    for name in names:
        store, path = _resolve(name)
        with named_errors(name):
            info = store.get_file_info(path)
            if info.type == fs.FileType.NotFound:
                raise UsageError(f"{name} is not there")
            infos = [info]
            if info.type == fs.FileType.Directory:
                infos = sorted(
                    (
                        each
                        for each in store.get_file_info(fs.FileSelector(path, recursive=True))
                        if each.type == fs.FileType.File
                        and each.path.endswith(tuple(suffixes))
                        and not _is_hidden(PurePosixPath(each.path).relative_to(path))
                    ),
                    key=lambda each: str(each.path),
                )
                if not infos:
                    raise UsageError(f"{name} holds no file that ends with {', '.join(suffixes)}")
        for each in infos:
            is_below = info.type == fs.FileType.Directory
            place = PurePosixPath(each.path).relative_to(path) if is_below else PurePosixPath(each.base_name)
            shown = f"{name.rstrip('/')}/{place}" if is_below else name
            file = InputFile(shown, store, each.path, place, each.size, each.mtime_ns)
            if f"{store.type_name}:{each.path}" in files:
                raise UsageError(f"{shown} is named twice")
            files[f"{store.type_name}:{each.path}"] = file
    return [files[key] for key in sorted(files)]


@contextlib.contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Make errors of a store or a format one line that names a file.

    Raises:
        OperationError: in their place.
    """
    try:
        yield
    except OSError as error:  # pyarrow's have the whole story in their text
        if isinstance(error, BlockingIOError | InterruptedError):
            raise
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise OperationError(f"{name}: {reason}") from error
    except ArrowException as error:
        raise OperationError(f"{name}: {' '.join(str(error).split())}") from error


def _resolve(name: str) -> tuple[Any, str]:
    """The store and the path in it that a path or a URI means."""
    try:
        if "://" in name:
            store, path = fs.FileSystem.from_uri(name)
            return store, str(path)
        return fs.LocalFileSystem(), os.path.abspath(name)  # noqa: PTH100  the same for a path that has gone
    except (ArrowException, OSError, ValueError, ImportError) as error:
        raise UsageError(f"{name}: {' '.join(str(error).split())}") from error


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(_HIDDEN) for part in path.parts)


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
