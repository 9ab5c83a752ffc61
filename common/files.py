"""Files and folders that appear whole or not at all, and the one rule of what a command may write over.

Writing: beside the target, flush to the disk, rename over it: POSIX `rename(2)` is atomic within a
file system, so a reader sees the old content or the new, never a part. A folder that is replaced exchanges its name
with the new one, by Linux's `renameat2(2)`, which is atomic too.

The rule, which `Destination` holds: a command writes into something new, or replaces a thing of the kind that it
writes when it is told to. It never touches anything else, nor what it reads itself.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dragoman.common.errors import OperationError, UsageError
from dragoman.common.exchange import exchange
from dragoman.common.signals import unwound_by_signals

__all__ = ["Destination", "atomic_file", "atomic_write", "check_writable", "sha256_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Destination:
    """The place that a command writes to, a file or a folder, and what the command may replace there.

    An empty folder counts as new for a folder, an empty file for a file. A link at `path` is refused: the command
    would replace either the link or what it leads to, and only the user knows which is meant. Links above `path` are
    followed.

    Attributes:
        path: The place.
        kind: What the command writes, in words, such as "a bundle".
        is_folder: Whether that is a folder, and not a file.
        flaw: Returns why the thing at a path is not of this kind, None where it is.
        inputs: Files and folders that the command reads.
        replaces: Whether the command was told to replace a thing of its kind.
        advice: What the user can do where the command was not told to.
    """

    path: Path
    kind: str
    is_folder: bool
    flaw: Callable[[Path], str | None]
    inputs: tuple[Path, ...] = ()
    replaces: bool = False
    advice: str = "give --force to replace it, or name another place"

    def check(self) -> None:
        """Refuse a place that the command must not write to; nothing there is touched.

        Raises:
            UsageError: saying what is there.
        """
        for given in self.inputs:
            self._check_apart(given)
        if self.path.is_symlink():
            raise UsageError(f"{self.path} is a link to {self.path.readlink()}: name the place itself")
        if obstacle := _obstacle_above(self.path):
            raise UsageError(f"{self.path} cannot be made: {obstacle}")
        if self._is_new():
            return
        if flaw := self.flaw(self.path):
            raise UsageError(f"{self.path} is not {self.kind}, and nothing else is ever replaced: {flaw}")
        if not self.replaces:
            raise UsageError(f"{self.path} is {self.kind} already: {self.advice}")

    @contextlib.contextmanager
    def file(self) -> Iterator[BinaryIO]:
        """Give a file to write, as `atomic_file`; the place is checked before the block and at its end.

        Raises:
            UsageError: as `check`.
            OperationError: the disk is full or the place cannot be written.
        """
        self.check()
        with atomic_file(self.path, before_rename=self.check) as file:
            yield file

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """Give a scratch folder beside `path` that becomes `path` when the block ends well.

        The place is checked before the block and at its end. `path` is at every moment what it was or the new folder,
        whole; where the file system cannot exchange two names at once, it is missing for a moment in between, and what
        was there is beside it as `.NAME.*.old`. On any error, and where SIGTERM or SIGHUP ends the process, `path` is
        as it was, and the scratch folder and the folders above it that were made for it are removed.

        Raises:
            UsageError: as `check`.
            OperationError: the disk is full, the place cannot be written, or something took it at the last moment.
                Where what was at `path` could not be put back, or could not be removed once the new folder stands in
                its place, the message says where it is.
        """
        self.check()
        with _named(self.path), unwound_by_signals(), _parents_of(self.path):
            scratch = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
            made: os.stat_result | None = None
            try:
                made = scratch.lstat()
                yield scratch
                scratch.chmod(0o755)
                _flush(scratch)
                self.check()  # minutes may have passed
                has_replaced = self._put(scratch)
            except BaseException:
                self._take_back(scratch, made)
                raise
            if has_replaced:
                self._remove(scratch)

    def _put(self, scratch: Path) -> bool:
        """Rename the finished folder to its place; returns whether what was there now has the scratch folder's name."""
        if self._is_new():
            scratch.rename(self.path)
            return False
        exchange(scratch, self.path)
        if flaw := self.flaw(scratch):  # not the one that was checked a moment ago
            raise OperationError(f"{self.path} was taken by something else meanwhile: {flaw}")
        return True

    def _take_back(self, scratch: Path, made: os.stat_result | None) -> None:
        """Undo an exchange, if there was one, and remove the scratch folder, which was `made` by this command."""
        if made and os.path.lexists(scratch) and not os.path.samestat(made, scratch.lstat()):
            try:
                exchange(scratch, self.path)
            except OSError as error:
                raise OperationError(
                    f"{self.path} is written; what it replaced is whole, in {scratch}, and cannot be put back: "
                    f"{error.strerror}"
                ) from error
        shutil.rmtree(scratch, ignore_errors=True)

    def _remove(self, old: Path) -> None:
        try:
            shutil.rmtree(old)
        except OSError as error:
            raise OperationError(
                f"{self.path} is written, but what it replaced, now {old}, cannot be removed: {error.strerror}"
            ) from error

    def _is_new(self) -> bool:
        if not os.path.lexists(self.path):
            return True
        if self.is_folder:
            return self.path.is_dir() and not any(self.path.iterdir())
        return self.path.is_file() and self.path.stat().st_size == 0

    def _check_apart(self, given: Path) -> None:
        """Refuse a place that is, is in or holds what the command reads."""
        written, read = self.path.resolve(), given.resolve()
        if _is_same(written, read):
            raise UsageError(f"{self.path} is what this command reads: name another place to write to")
        if any(_is_same(parent, read) for parent in written.parents):
            raise UsageError(f"{self.path} lies in {given}, which this command reads: name a place outside")
        if any(_is_same(written, parent) for parent in read.parents):
            raise UsageError(f"{self.path} holds {given}, which this command reads: name another place")


def atomic_write(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write `content` to `path` whole or not at all, as `atomic_file`.

    Raises:
        OperationError: the disk is full or the place cannot be written; nothing half-written stays.
    """
    with atomic_file(path, mode=mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(
    path: Path, *, before_rename: Callable[[], None] = lambda: None, mode: int = 0o644
) -> Iterator[BinaryIO]:
    """Give a file to write that becomes `path` when the block ends well, for content that comes in parts.

    On any error, and where SIGTERM or SIGHUP ends the process, it is removed, and `path` is as it was. Folders above
    `path` are made if they are missing. Where `path` is a link, the file that it leads to is replaced and the link
    stays. What is no regular file, such as a device, is never replaced.

    Raises:
        OperationError: the disk is full or the place cannot be written.
    """
    target = path.resolve() if path.is_symlink() else path
    with _named(target), unwound_by_signals(), _parents_of(target):
        if target.exists() and not target.is_file():
            raise OperationError(f"cannot write {path}: it is there and is no regular file")
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(mode)  # mkstemp makes it private; most artefacts are for others to read
            before_rename()
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def check_writable(folder: Path) -> None:
    """Fail now, not after hours of work, when `folder` (or the nearest parent there is) refuses files.

    Raises:
        OperationError: it cannot be written, with the reason.
    """
    with _named(folder):
        if obstacle := _obstacle_above(folder / "file"):
            raise OperationError(f"cannot write {folder}: {obstacle}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_same(a: Path, b: Path) -> bool:
    """Whether both are one file or folder, under whatever names."""
    try:
        return a.samefile(b)
    except OSError:
        return False


def _flush(folder: Path) -> None:
    """Flush all files of a folder to the disk, and the folders that name them."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or path.is_dir():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _obstacle_above(path: Path) -> str | None:
    """Why no folder can be made above `path`: a file is there, or a link that leads nowhere. None where one can."""
    for parent in path.parents:
        if parent.is_symlink() and not parent.exists():
            return f"{parent} is a link to {parent.readlink()}, which leads nowhere"
        if parent.exists():
            return None if parent.is_dir() else f"{parent} is a file"
    return None


@contextlib.contextmanager
def _parents_of(path: Path) -> Iterator[None]:
    """Make the folders above `path`; where the block fails, those that were made and are empty go again."""
    if obstacle := _obstacle_above(path):
        raise OperationError(f"cannot write {path}: {obstacle}")
    made = [parent for parent in path.parents if not parent.exists()]  # the innermost first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name what could not be written; an error of another file, which the block reads, keeps its own name."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str):
            met, folder = Path(error.filename), path.parent
            if not met.is_relative_to(folder) and not folder.is_relative_to(met):
                raise
        raise OperationError(f"cannot write {path}: {error.strerror or error}") from error
