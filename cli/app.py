"""The commands of `dragoman`, and the one place where errors become a line and an exit code.

0    it worked
1    it failed: the server cannot be reached, the disk is full, ...
2    it was asked for wrongly: an unknown option, model or recipe, text that is too long, ...
130  it was interrupted (Ctrl-C)
"""

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from dragoman.cli import (
    back_translate,
    bench,
    config,
    demo,
    evaluate,
    export,
    generate,
    generate_files,
    models,
    report,
    score,
    serve,
    token,
    train,
    translate,
    translate_files,
    verify,
)
from dragoman.cli.command import Command
from dragoman.cli.exit_codes import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from dragoman.cli.options import examples
from dragoman.cli.output import note
from dragoman.cli.top import command as top
from dragoman.common.errors import DragomanError, UsageError

__all__ = ["app", "run"]

app = typer.Typer(
    name="dragoman",
    help="Train a Transformer, export it to ONNX, serve it over gRPC, and call it.",
    epilog=examples(
        "dragoman demo  # the whole path in three minutes",
        "dragoman serve --models models  # serve every model in this folder",
        'dragoman translate --model dates "le 3 mars 2024"',
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


_add = functools.partial(app.command, cls=Command)

_add(rich_help_panel="Start here", epilog=demo.EPILOG)(demo.demo)
_add(rich_help_panel="Make a model", epilog=train.EPILOG)(train.train)
_add(rich_help_panel="Make a model", epilog=report.EPILOG)(report.report)
_add(rich_help_panel="Make a model", epilog=export.EPILOG)(export.export)
_add(rich_help_panel="Make a model", epilog=verify.EPILOG)(verify.verify)
_add(rich_help_panel="Make a model", epilog=evaluate.EPILOG)(evaluate.evaluate)
_add(rich_help_panel="Make a model", epilog=back_translate.EPILOG)(back_translate.back_translate)
_add(rich_help_panel="Serve it", epilog=serve.EPILOG)(serve.serve)
_add(rich_help_panel="Serve it", epilog=config.EPILOG)(config.config)
app.add_typer(token.app, name="token", rich_help_panel="Serve it", epilog=token.EPILOG)
_add(rich_help_panel="Call it", epilog=translate.EPILOG)(translate.translate)
_add(rich_help_panel="Call it", epilog=generate.EPILOG)(generate.generate)
_add(rich_help_panel="Call it", epilog=score.EPILOG)(score.score)
_add("translate-files", rich_help_panel="Call it", epilog=translate_files.EPILOG)(
    translate_files.translate_files
)
_add("generate-files", rich_help_panel="Call it", epilog=generate_files.EPILOG)(generate_files.generate_files)
app.add_typer(models.app, name="models", rich_help_panel="Call it", epilog=models.EPILOG)
_add(rich_help_panel="Call it", epilog=bench.EPILOG)(bench.bench)
_add(rich_help_panel="Watch it", epilog=top.EPILOG)(top.top)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            print(f"dragoman {metadata.version('dragoman')}")
        except metadata.PackageNotFoundError:
            raise UsageError("dragoman runs from a source folder that was never installed") from None
        raise typer.Exit


@app.callback()
def dragoman(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Train a Transformer, export it to ONNX, serve it over gRPC, and call it."""


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every expected error is one line on standard error."""
    try:
        status = app(arguments, standalone_mode=False, prog_name="dragoman")
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except SystemExit as left:  # Typer's answer to a broken pipe
        return left.code if isinstance(left.code, int) else EXIT_FAILURE
    except BrokenPipeError:  # the reader of the output has gone, and needs no message
        return EXIT_FAILURE
    except Exception as error:  # noqa: BLE001  the unexpected is raised again
        if _comes_of_interrupt(error):
            return EXIT_INTERRUPTED
        message, code = _explain(error)
        if message:  # `dragoman` alone has said all with its help
            note(f"error: {' '.join(message.split())}")
        return code
    finally:
        _settle_output()
    return status if isinstance(status, int) else 0


def _explain(error: Exception) -> tuple[str, int]:
    """One line for the user, and the exit code; what is nobody's mistake but ours is raised again."""
    match error:
        case TyperException():
            return _usage_message(error), error.exit_code
        case UsageError():
            return str(error), EXIT_USAGE
        case DragomanError():
            return str(error), EXIT_FAILURE
        case OSError(errno=errno.EBADF):
            return "standard input or standard output is closed", EXIT_FAILURE
        case OSError(strerror=str(reason), filename=filename):
            return f"{reason}: {filename}" if filename else reason, EXIT_FAILURE
    raise error


def _comes_of_interrupt(error: BaseException | None) -> bool:
    """Whether an interrupt is behind `error`, of which a module of C that is being loaded makes an error."""
    if not isinstance(error, ImportError | SystemError):
        return False
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _usage_message(error: TyperException) -> str:
    """As every other message here: no capital, no full stop, and with the offending value."""
    from pydantic import ValidationError  # Typer's own means of reading values

    message = error.format_message()
    if isinstance(error.__cause__, ValidationError):
        message += f" (got {error.__cause__.errors()[0]['input']!r})"
    return message[:1].lower() + message[1:].rstrip(".")


def _settle_output() -> None:
    """Give up output that cannot be written, or the interpreter would fail over it when it leaves."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
