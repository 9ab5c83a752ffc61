"""Two folders exchange their names: at once where the system can, else in three renames that are undone together."""

import ctypes
import errno
import os
from pathlib import Path

from dragoman.common.errors import OperationError

__all__ = ["exchange"]

_AT_FDCWD = -100  # of fcntl.h
_RENAME_EXCHANGE = 1 << 1  # of linux/fs.h
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def exchange(scratch: Path, target: Path) -> None:
    """Give each of two folders of one parent the other's name.

    Raises:
        OSError: they have the names that they had.
        OperationError: what was at `target` could not be put back; the message says where it is.
    """
    if _exchanged_at_once(scratch, target):
        return
    # rename(2) refuses a folder that is not empty: the old one steps aside.
    aside = scratch.with_name(f"{scratch.name}.old")
    try:
        target.rename(aside)
        scratch.rename(target)
        aside.rename(scratch)
    except BaseException:
        if os.path.lexists(aside):
            _put_back(aside, target, scratch)
        raise


def _put_back(aside: Path, target: Path, scratch: Path) -> None:
    """Rename `aside` to `target` again, after an exchange that failed half-way."""
    try:
        if not os.path.lexists(scratch):  # it has its place already
            target.rename(scratch)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "something else is there")
        aside.rename(target)
    except OSError as error:
        raise OperationError(
            f"{target} cannot be written, and what was there is whole, in {aside}: {error.strerror}"
        ) from error


def _exchanged_at_once(first: Path, second: Path) -> bool:
    """Exchange two names by Linux's renameat2(2); returns False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if not renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))
