"""From the process's first line to its last: interrupts, closed streams, arguments that are not UTF-8."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import typer.main

from dragoman.cli.app import app
from dragoman.cli.command import Command, CommandGroup
from dragoman.cli.main import main

_top: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
commands: dict[str, Any] = dict(_top)
commands |= {
    f"{name} {inner}": command
    for name, group in _top.items()
    for inner, command in getattr(group, "commands", {}).items()
}
"""By their words, those of groups too."""


COMMAND = "import sys; from dragoman.cli.main import main; sys.exit(main())"


def run(program: str, *, shell: tuple[str, ...] = (), **streams: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*shell, sys.executable, "-c", program, "config", "server"],
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


@pytest.mark.parametrize(
    "module", ["dragoman.cli.app", "dragoman.cli.exit_codes", "dragoman.cli.config", "pydantic"]
)
def test_an_interrupt_at_any_import_leaves_with_its_code_and_without_a_traceback(module: str) -> None:
    done = run(f"""
import os, signal, sys
from dragoman.cli.main import main

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.modules.pop("dragoman.cli.exit_codes")
sys.meta_path.insert(0, Interrupter())
sys.exit(main())
""")
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("is_machine_busy", [False, True])
def test_an_interrupt_where_nothing_can_be_raised_is_not_lost(*, is_machine_busy: bool) -> None:
    """It is repeated where it can be raised, however long the way there takes on a busy machine."""
    done = run(f"""
import os, signal, sys, threading, time, weakref
from dragoman.cli.main import main

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == "dragoman.server.config":
            dying = Interrupter()
            kept = weakref.ref(dying, lambda _: os.kill(os.getpid(), signal.SIGINT))
            del dying
            time.sleep(30)  # until the interrupt is repeated

def start_slowly(thread):
    start(thread)
    time.sleep(0.2)

start = threading.Thread.start
if {is_machine_busy}:
    threading.Thread.start = start_slowly
sys.meta_path.insert(0, Interrupter())
sys.exit(main())
""")
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_an_interrupt_while_a_class_is_built_leaves_with_its_code() -> None:
    """Python makes a RuntimeError of what `__set_name__` raises."""
    done = run("""
import os, signal, sys
from dragoman.cli.main import main

class Attribute:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT)

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == "dragoman.server.config":
            class Interrupted:
                attribute = Attribute()

sys.meta_path.insert(0, Interrupter())
sys.exit(main())
""")
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_an_interrupt_while_the_interpreter_leaves_shows_nothing() -> None:
    done = run("""
import atexit, os, signal, sys
from dragoman.cli.main import main

atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.exit(main())
""")
    assert (done.returncode, done.stderr) == (130, b"")
    assert b"[server]" in done.stdout


def test_an_interrupt_that_the_shell_has_switched_off_stays_off() -> None:
    done = run("""
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from dragoman.cli.main import main
code = main()
os.kill(os.getpid(), signal.SIGINT)
sys.exit(code)
""")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("closed", "code", "error"),
    [
        ("<&-", 0, b""),
        ("<&- >&-", 1, b"error: standard input or standard output is closed\n"),
        (">&- 2>&-", 1, b""),
    ],
)
def test_closed_streams_are_no_traceback(closed: str, code: int, error: bytes) -> None:
    done = run(COMMAND, shell=("/bin/sh", "-c", f'exec "$@" {closed}', "sh"))
    assert (done.returncode, done.stderr) == (code, error)


def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(COMMAND, stdout=full)
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device: standard output\n")


def broken_pipe() -> BinaryIO:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "wb")  # noqa: PTH123


@pytest.mark.parametrize(
    "stderr",
    [
        functools.partial(Path("/dev/full").open, "wb"),  # the disk of its log is full
        functools.partial(
            Path("/dev/null").open, "rb"
        ),  # a shell script leaves it in the place of a closed one
        broken_pipe,
    ],
    ids=["full", "closed", "broken"],
)
def test_standard_error_that_cannot_be_written_costs_no_result(stderr: Callable[[], BinaryIO]) -> None:
    program = """
import logging, sys
import dragoman.cli.app
from dragoman.cli.main import main
from dragoman.cli.output import note, report_console

def run(arguments):
    note("said")
    print("said" * 10_000, file=sys.stderr, flush=True)
    report_console(stderr=True).print("said")
    logging.error("said")
    print("a result")
    return 0

dragoman.cli.app.run = run
sys.exit(main())
"""
    with stderr() as stream:
        done = run(program, stderr=stream)
    assert (done.returncode, done.stdout) == (0, b"a result\n")


def test_what_is_said_on_standard_error_is_said() -> None:
    done = run(r"""
import sys
sys.argv[1:] = ["config", "\udcff"]
from dragoman.cli.main import main
code = main()
print("ä\udcff", end="", file=sys.stderr)
sys.exit(code)
""")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["ä\\udcff".encode()]


@pytest.mark.parametrize("command", commands)
def test_arguments_that_are_not_utf8_are_refused_by_name(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every argument of every command that takes text; the interpreter hands on other bytes as surrogates."""
    parameters = commands[command].params
    assert isinstance(commands[command], Command | CommandGroup)
    for parameter in parameters:
        if parameter.type_descriptor.annotation not in (str, list[str]):
            continue
        arguments = command.split()
        for other in parameters:
            if other is parameter or other.required:
                choices = list(other.type_descriptor.choices or ())
                value = "a\udcff" if other is parameter else str(choices[0]) if choices else "1"
                arguments += [*other.opts[-1:], value] if other.param_type_name == "option" else [value]
        assert main(arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: invalid value for {parameter.get_error_hint()}: ")
        assert line.endswith("'a\\udcff' is not UTF-8")
