"""Processes as Linux has them: prctl(2), which Python does not offer, and how one has ended."""

import contextlib
import ctypes
import os
import signal

__all__ = [
    "FRONT_ARENAS",
    "KILLED",
    "adopt_orphans",
    "die_with_parent",
    "how_it_ended",
    "limit_arenas",
    "name_process",
    "trim_memory",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_MAX_NAME_BYTES = 15
FRONT_ARENAS = 1
"""Heaps of a process that answers calls. Floods of large headers took 85 MiB more with glibc's own number on two cores,
and ever more; with one they take what the largest flood took (docs/performance-log.md)."""
_M_ARENA_MAX = -8  # of mallopt(3)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process at once when `parent` ends, however that ends.

    The kernel counts the thread that made this process as its parent: call it for children of a main thread.
    """
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def adopt_orphans(*, adopt: bool = True) -> None:
    """Become the parent of processes whose parent, a child of this process, ends before them; or do so no longer."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(adopt))


def name_process(name: str) -> None:
    """Give this process a name for `ps` and `top`, cut to what the kernel keeps."""
    kept = ctypes.create_string_buffer(name.encode()[:_MAX_NAME_BYTES])
    _prctl(_PR_SET_NAME, ctypes.addressof(kept))


KILLED = "killed by SIGKILL"
"""How a process has ended that somebody killed, perhaps the system as it was short of memory."""


def how_it_ended(code: int) -> str:
    """Returns, for people, how a process ended: `code` is that of `subprocess` and `os.waitstatus_to_exitcode`."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):  # a real-time signal has no name
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(each) for each in (value, 0, 0, 0))):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def limit_arenas(number: int) -> None:
    """Let the C library have this many heaps for the threads of this process, of those that it makes from now on.

    glibc makes up to eight a core, and each one keeps as much as was ever in use in it at one time.
    """
    with contextlib.suppress(AttributeError):  # glibc has it
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, number)


def trim_memory() -> None:
    """Give memory that was freed back to the system: the C library keeps it where pieces beside it are in use."""
    with contextlib.suppress(AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)
