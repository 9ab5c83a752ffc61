"""The command `dragoman`: its commands, and the one place where errors become a line and an exit code.

0    it worked
1    it failed: the server cannot be reached, the disk is full, ...
2    it was asked for wrongly: an unknown option, model or recipe, text that is too long, ...
130  it was interrupted (Ctrl-C)
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from client.cli import (
    back_translate,
    bench,
    config,
    demo,
    evaluate,
    export,
    generate,
    models,
    report,
    score,
    serve,
    train,
    translate,
    verify,
)
from client.cli.exit_codes import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE
from client.cli.options import examples
from common.errors import DragomanError, UsageError

__all__ = ["app", "main"]

_TRAIN_EXTRA = frozenset(
    {
        "babel",
        "jinja2",
        "matplotlib",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "pyarrow",
        "sacrebleu",
        "safetensors",
        "tensorboard",
        "torch",
    }
)

app = typer.Typer(
    name="dragoman",
    help="Train a Transformer, export it to ONNX, serve it over gRPC, and call it.",
    epilog=examples(
        "dragoman demo  # the whole path in three minutes",
        "dragoman serve --models models  # serve what is there",
        'dragoman translate --model dates "le 3 mars 2024"',
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

app.command(rich_help_panel="Start here", epilog=demo.EPILOG)(demo.demo)
app.command(rich_help_panel="Make a model", epilog=train.EPILOG)(train.train)
app.command(rich_help_panel="Make a model", epilog=report.EPILOG)(report.report)
app.command(rich_help_panel="Make a model", epilog=export.EPILOG)(export.export)
app.command(rich_help_panel="Make a model", epilog=verify.EPILOG)(verify.verify)
app.command(rich_help_panel="Make a model", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(rich_help_panel="Make a model", epilog=back_translate.EPILOG)(back_translate.back_translate)
app.command(rich_help_panel="Serve it", epilog=serve.EPILOG)(serve.serve)
app.command(rich_help_panel="Serve it", epilog=config.EPILOG)(config.config)
app.command(rich_help_panel="Call it", epilog=translate.EPILOG)(translate.translate)
app.command(rich_help_panel="Call it", epilog=generate.EPILOG)(generate.generate)
app.command(rich_help_panel="Call it", epilog=score.EPILOG)(score.score)
app.command(rich_help_panel="Call it", epilog=models.EPILOG)(models.models)
app.command(rich_help_panel="Call it", epilog=bench.EPILOG)(bench.bench)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every expected error is one line on standard error."""
    try:
        status = app(arguments, standalone_mode=False, prog_name="dragoman")
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _leave_broken_pipe()
    except Exception as error:  # noqa: BLE001  the unexpected is raised again
        message, code = _explain(error)
        if message:  # `dragoman` alone has said all with its help
            print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return code
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
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] in _TRAIN_EXTRA:
            return f"this needs {name}, which is not installed: pip install 'dragoman[train]'", EXIT_FAILURE
        case OSError(strerror=str(reason), filename=filename):
            return f"{reason}: {filename}" if filename else reason, EXIT_FAILURE
    raise error


def _usage_message(error: TyperException) -> str:
    """As every other message here: no capital, no full stop, and with the offending value."""
    from pydantic import ValidationError  # Typer's own means of reading values

    message = error.format_message()
    if isinstance(error.__cause__, ValidationError):
        message += f" (got {error.__cause__.errors()[0]['input']!r})"
    return message[:1].lower() + message[1:].rstrip(".")


def _leave_broken_pipe() -> int:
    """Whoever read the output has gone; the interpreter must not stumble over it again when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
