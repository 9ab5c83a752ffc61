"""A Unix domain socket as gRPC's address: `unix:PATH`, as clients write it.

gRPC itself removes whatever socket it finds at the path, also that of a running server. So the path is looked
at first: only a socket of this user that nobody listens on is removed.
"""

import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dragoman.server.config import is_unix
from dragoman.server.errors import AddressError

__all__ = ["SocketFile", "check_socket_free"]

_CONNECT_TIMEOUT_S = 1.0


def check_socket_free(host: str) -> None:
    """Check that gRPC can listen on `host`; remove the socket that a server left which was killed.

    Raises:
        AddressError: a server listens there, something else is at the path, or the system refuses it.
    """
    path = _path(host)
    if path is None:  # an abstract socket is gone with its process
        return
    try:
        if path.is_symlink() or path.exists():
            _remove_stale(host, path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.bind(str(path))
        path.unlink()
    except OSError as error:  # a path that is too long has no `strerror`
        raise AddressError(f"cannot serve gRPC on {host}: {error.strerror or error}") from error


@dataclass(frozen=True)
class SocketFile:
    """The file of a socket that this process listens on."""

    path: Path
    inode: int

    @classmethod
    def of(cls, host: str) -> Self | None:
        """The file behind `host` once it is bound; None where there is none."""
        path = _path(host) if is_unix(host) else None
        return None if path is None else cls(path, path.lstat().st_ino)

    def remove(self) -> None:
        """Remove the file, unless it is another one by now."""
        with contextlib.suppress(OSError):
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


def _path(host: str) -> Path | None:
    scheme, _, name = host.partition(":")
    if not name:
        raise AddressError(f"cannot serve gRPC on {host!r}: expected unix:PATH")
    # unix:///PATH is the same as unix:/PATH.
    return None if scheme == "unix-abstract" else Path(name.removeprefix("//"))


def _remove_stale(host: str, path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISSOCK(status.st_mode):
        raise AddressError(f"cannot serve gRPC on {host}: the path exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        with contextlib.suppress(ConnectionRefusedError):
            with contextlib.suppress(TimeoutError, BlockingIOError):  # its queue of connections is full
                probe.connect(str(path))
            raise AddressError(f"cannot serve gRPC on {host}: a server listens there")
    if status.st_uid != os.geteuid():
        raise AddressError(f"cannot serve gRPC on {host}: another user's server left the socket")
    path.unlink()
