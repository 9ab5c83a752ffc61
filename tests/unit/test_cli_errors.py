"""Every expected mistake is one line on standard error and a fixed exit code."""

import errno
from pathlib import Path

import pytest

from dragoman.cli import app as cli
from dragoman.cli.main import main
from dragoman.common.errors import DragomanError, MissingExtraError, OperationError, SettingsError, UsageError


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["scroe"], "error: no such command 'scroe'. Did you mean 'score'?"),
        (["translate", "hello"], "error: missing option '--model' / '-m' (or '--bundle', without a server)"),
        (
            ["evaluate", "h:1", "--limit", "0"],
            "error: invalid value for '--limit': Input should be greater than or equal to 1 (got '0')",
        ),
        (["models", "--target", "nowhere"], "error: target 'nowhere' is not of the form HOST:PORT"),
        (["translate", "--model", "m", "--timeout", "-1", "x"], "error: invalid value for '--timeout': "),
        (["evaluate", "nothing-here"], "error: 'nothing-here' is neither a bundle's folder nor HOST:PORT"),
        (["serve", "--config", "nothing.toml"], "error: cannot read nothing.toml: No such file or directory"),
        (["serve", "--set", "server.prot=1"], "error: settings: unknown key 'server.prot'; did you mean"),
        (["score", "--model", "m", "--inputs", "no-file"], "error: cannot read inputs from no-file: No such"),
        (
            ["score", "--model", "m", "--inputs", __file__, "text"],
            f"error: --inputs {__file__} and 1 texts: give one of them",
        ),
        (["bench", "--model", "m", "--inputs", "no-file"], "error: cannot read inputs from no-file: No such"),
        (
            ["bench", "--model", "m", "--inputs", __file__, "--rate", "0"],
            "error: rate = 0: must be above 0",
        ),
        (
            ["bench", "--model", "m", "--inputs", __file__, "--rate", "5", "-c", "2"],
            "error: a load is either a closed loop (concurrency) or an open loop (rate)",
        ),
    ],
)
def test_the_callers_mistakes(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert not captured.err.endswith(".\n")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (UsageError("that cannot be"), "that cannot be", 2),
        (SettingsError("two\nlines"), "two lines", 2),
        (OperationError("the disk is full"), "the disk is full", 1),
        (DragomanError("something else"), "something else", 1),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "No space left on device: /x", 1),
        (MissingExtraError("this needs x", name="x"), "this needs x", 1),
    ],
)
def test_every_expected_error_is_one_line(
    error: Exception,
    line: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert main([]) == code
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize("error", [KeyError("our own bug"), ModuleNotFoundError("x", name="torch")])
def test_a_bug_is_not_dressed_up(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(type(error)):
        main([])


def test_an_interrupt_has_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert main([]) == 130


def test_an_interrupt_that_a_module_made_an_error_of_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialise(*_: object, **__: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(cli, "app", initialise)
    assert main([]) == 130


def test_an_unwritable_folder_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["train", "dates", "--out", str(tmp_path / "file" / "run")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
