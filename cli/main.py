"""Where the process of the command `dragoman` begins and ends.

The commands are in `dragoman.cli.app`. Loading them takes a tenth of a second, so this module loads nothing
else first: from its first line on, an interrupt ends the process with exit code 130 and without a traceback.
"""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from dragoman.cli.exit_codes import EXIT_INTERRUPTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["main"]

_MOMENT_S = 0.01


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: The command and its arguments. None: those of this process, which then belongs to the
            command: its closed standard streams and its interrupts are taken care of.
    """
    if arguments is not None:
        from dragoman.cli.app import run

        return run(arguments)
    _open_closed_streams()
    _lose_what_stderr_refuses()
    can_be_interrupted = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not under nohup
    try:
        if can_be_interrupted:
            signal.signal(signal.SIGINT, _leave)
        from dragoman.cli.app import run

        if can_be_interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = _interrupt_again
        return run(sys.argv[1:])
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        if _was_an_interrupt(error):
            return EXIT_INTERRUPTED
        raise
    finally:
        # While the interpreter leaves, an interrupt would only show where it was.
        if can_be_interrupted:
            signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  as `signal` calls it
    """Leave at once. A module that is half loaded may turn an exception into any other one."""
    os._exit(EXIT_INTERRUPTED)


def _was_an_interrupt(error: Exception) -> bool:
    """Whether an interrupt came while a class was built.

    Python makes a RuntimeError of it where `__set_name__` runs, and pydantic an error of its own, without a cause.
    """
    is_of_pydantic = type(error).__name__ == "SchemaError" and "KeyboardInterrupt" in str(error)
    return is_of_pydantic or isinstance(error.__cause__, KeyboardInterrupt)


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Repeat an interrupt that came where no exception can be raised, as in a callback of a dead object.

    The interpreter would show it and go on, and a server would go on serving.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # In a thread: what is raised here is lost as well.
        repeating = threading.Thread(target=_interrupt_later, args=(threading.get_ident(),), daemon=True)
        repeating.start()
    else:
        sys.__unraisablehook__(unraisable)


def _interrupt_later(thread_id: int) -> None:
    """Interrupt this process once the thread `thread_id` has left `_interrupt_again`.

    On a busy machine the thread may stay there for longer than any fixed time.
    """
    while True:
        time.sleep(_MOMENT_S)
        frame = sys._current_frames().get(thread_id)  # noqa: SLF001  documented
        while frame is not None and frame.f_code is not _interrupt_again.__code__:
            frame = frame.f_back
        if frame is None:
            os.kill(os.getpid(), signal.SIGINT)
            return


def _open_closed_streams() -> None:
    """Open the null device in the place of each standard stream that is closed (`<&-`, `>&-`).

    Otherwise the next file that is opened gets the stream's number, and what is meant for the screen ends in
    that file. Standard input is opened for writing and standard output for reading, so that a command that
    needs the stream still fails and names the reason. What is meant for standard error is lost.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  a descriptor, for good
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As standard error does: a table is not worth a failure.
        sys.stdout.reconfigure(errors="backslashreplace")


class _LossyFile(io.FileIO):
    """A file that takes everything and loses what it cannot write."""

    def write(self, data: "Buffer", /) -> int:
        """Write `data`, or not."""
        num_bytes = memoryview(data).nbytes
        try:
            return super().write(data) or num_bytes  # None: a terminal that is not to be waited for
        except OSError:
            return num_bytes


def _lose_what_stderr_refuses() -> None:
    """Make standard error a stream that never fails.

    What is said there is not worth a result: a training goes on when the disk of its log is full, or when the
    terminal that watched it is gone.
    """
    encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
    lossy = _LossyFile(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(lossy), encoding=encoding, errors="backslashreplace", line_buffering=True
    )


if __name__ == "__main__":
    sys.exit(main())
