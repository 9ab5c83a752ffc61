"""Files with credentials: when they change, and who may read them."""

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from dragoman.server.errors import CredentialsError

__all__ = ["Signature", "loose_permissions", "read_file", "signature_of"]

Signature = tuple[tuple[int, ...] | None, ...]
"""The state of some files: equal while none of them changes. A file that cannot be looked at is None."""

MAX_BYTES = 4 * 1024 * 1024
"""More than any file of credentials has."""


def signature_of(paths: Iterable[Path]) -> Signature:
    """Returns what shows that a file was written, or that another one took its place, also behind a link."""
    return tuple(map(_signature, paths))


def read_file(path: Path, kind: str) -> bytes:
    """Returns the content of `path`, which is `kind`.

    Raises:
        CredentialsError: it cannot be read, is empty or is far too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CredentialsError(f"cannot read {kind} {path}: {error.strerror}") from error
    if not content.strip() or len(content) > MAX_BYTES:
        raise CredentialsError(f"{kind} {path} has {len(content)} bytes: it is none")
    return content


def loose_permissions(secret: Sequence[Path], trusted: Sequence[Path]) -> list[str]:
    """Returns the faults of permissions: anyone may read a file of `secret`, or others may write one of either kind."""
    wrong = []
    for path in (*secret, *trusted):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # who reads the file says so
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            wrong.append(f"{path} can be written by others than its owner (mode {stat.S_IMODE(mode):o})")
        elif mode & stat.S_IROTH and path in secret:
            wrong.append(f"{path} can be read by every user of this machine (mode {stat.S_IMODE(mode):o})")
    return wrong


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
