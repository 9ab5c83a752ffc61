"""How a process ended, in words: also by a signal that has no name."""

import signal
import subprocess
import sys

import pytest

from dragoman.server.processes.linux import how_it_ended


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        (
            f"import os; os.kill(os.getpid(), {signal.SIGRTMIN + 5})",
            f"killed by signal {signal.SIGRTMIN + 5}",
        ),
    ],
)
def test_an_end_is_told_whatever_it_was(program: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert how_it_ended(done.returncode) == said
