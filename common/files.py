"""Files and folders that appear whole or not at all.

Write beside the target, flush to the disk, rename over it: POSIX `rename(2)` is atomic within a
file system, so a reader sees the old content or the new, never a part.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from common.errors import OperationError

__all__ = ["atomic_file", "atomic_folder", "atomic_write", "check_writable", "sha256_of"]


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` whole or not at all; the parent folder is made if it is missing.

    Raises:
        OperationError: the disk is full or the place cannot be written; nothing half-written stays.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes `path` when the block ends well, for content that comes in parts.

    On any error it is removed, and `path` is as it was; the parent folder is made if it is missing.

    Raises:
        OperationError: the disk is full or the place cannot be written.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # mkstemp makes it private; artefacts are for others to read
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes `path` when the block ends well, replacing what was there.

    On any error the scratch folder is removed and `path` is as it was.

    Raises:
        OperationError: the disk is full or the place cannot be written.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield scratch
            scratch.chmod(0o755)
            _flush_files(scratch)
            # rename(2) refuses a folder that is not empty, so the old one steps aside first.
            old = scratch.with_name(scratch.name + ".old")
            if path.exists():
                path.rename(old)
            scratch.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def check_writable(folder: Path) -> None:
    """Fail now, not after hours of work, when `folder` (or the nearest parent there is) refuses files.

    Raises:
        OperationError: it cannot be written, with the reason.
    """
    with _named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_files(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperationError(f"cannot write {path}: {error.strerror or error}") from error
