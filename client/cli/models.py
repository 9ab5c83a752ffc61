"""`dragoman models`: what a server holds."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.options import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, Target, Timeout, examples
from client.cli.output import report_console, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from client import ModelInfo

__all__ = ["EPILOG", "models", "models_table"]

EPILOG = examples(
    "dragoman models",
    "dragoman models --target gpu-server:8500 --json  # for a script",
)


def models(
    target: Target = DEFAULT_TARGET,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """List the models that a server holds, with their limits and measured quality."""
    from client import Client

    with Client(target, timeout_s=timeout_s) as client:
        held = client.models()
    if as_json:
        write_json([dataclasses.asdict(model) for model in held])
    else:
        report_console().print(models_table(held))


def models_table(held: "list[ModelInfo]") -> "Table":
    """One row a model."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("Model", "Version", "Task", "Precision", "Provider"):
        table.add_column(heading)
    for heading in ("Parameters", "Max input", "Max output"):
        table.add_column(heading, justify="right")
    table.add_column("Quality at export")
    for model in held:
        quality = ", ".join(f"{figure.metric} {figure.value:.4g}" for figure in model.quality)
        table.add_row(
            model.name,
            model.version,
            model.task,
            model.precision,
            model.provider,
            f"{model.num_parameters:,}",
            f"{model.max_input_tokens:,}",
            f"{model.max_output_tokens:,}",
            quality,
        )
    return table
