"""`dragoman bench`: how much a server can do, and how long its callers wait."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dragoman.cli.credentials import with_credentials
from dragoman.cli.decoding_options import BeamSize, MaxTokens, MinTokens
from dragoman.cli.options import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    Model,
    ModelVersion,
    Priority,
    Target,
    Timeout,
    examples,
)
from dragoman.cli.output import note, note_waiting_for_input, report_console, write_json
from dragoman.cli.progress import progress_bar
from dragoman.client.credentials import Credentials
from dragoman.client.results import DecodingOptions
from dragoman.common.errors import OperationError

if TYPE_CHECKING:
    from rich.table import Table

    from dragoman.client.load.generator import LoadPlan
    from dragoman.client.load.report import Distribution, LoadReport

__all__ = ["EPILOG", "bench"]

EPILOG = examples(
    "dragoman bench --model dates --concurrency 64  # closed loop: how much can it do?",
    "dragoman bench --model dates --rate 500 --duration 60  # open loop: what do users see?",
    "dragoman bench --model multi30k --inputs captions.en --stream --json",
    "dragoman bench --model dates --inputs models/dates/1  # a bundle's own golden examples",
)

_LOAD = "Load"
_BUSY_SHARE = 0.9
_LATE_S = 0.1


@with_credentials
def bench(
    *,
    model: Model,
    model_version: ModelVersion = "",
    target: Target = DEFAULT_TARGET,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    priority: Priority = "normal",
    credentials: Credentials,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            "-c",
            metavar="N",
            help="Closed loop: N callers. Each waits for an answer before its next request.",
            show_default="16, unless --rate is given",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="Open loop: R requests a second at random (Poisson) times. They do not wait for answers.",
            show_default=False,
            rich_help_panel=_LOAD,
        ),
    ] = None,
    duration_s: Annotated[
        float,
        typer.Option(
            "--duration", metavar="SECONDS", help="Length of the measurement.", rich_help_panel=_LOAD
        ),
    ] = 10.0,
    warm_up_s: Annotated[
        float,
        typer.Option(
            "--warm-up",
            metavar="SECONDS",
            min=0.0,
            help="Time of load before the measurement.",
            rich_help_panel=_LOAD,
        ),
    ] = 2.0,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Texts to send: a file of lines, - for standard input, or a bundle's folder, whose golden "
            "examples are sent.",
            show_default="built-in texts, for models of the built-in recipes",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Stream translations, and measure the time to the first token.",
            rich_help_panel=_LOAD,
        ),
    ] = False,
    seed: Annotated[
        int,
        typer.Option(
            help="Random seed of the texts' order and of the times of requests.", rich_help_panel=_LOAD
        ),
    ] = 0,
    max_tokens: MaxTokens = None,
    min_tokens: MinTokens = None,
    beam_size: BeamSize = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Put a load on a server and measure throughput, latency and errors.

    Latency begins at the time when a request should be sent, so it includes the wait for a slow server. Standard
    error says when the load generator was the limit and not the server. If the load generator cannot send at
    --rate, the command ends early with exit code 1.
    """
    import dataclasses

    from dragoman.client.load.generator import LoadPlan

    plan = LoadPlan(
        target=target,
        model=model,
        version=model_version,
        inputs=_texts(inputs, target, model, model_version, timeout_s=timeout_s, credentials=credentials),
        credentials=credentials,
        concurrency=16 if concurrency is None and rate is None else concurrency,
        rate=rate,
        duration_s=duration_s,
        warm_up_s=warm_up_s,
        timeout_s=timeout_s,
        priority=priority,
        stream=stream,
        options=DecodingOptions(max_tokens=max_tokens, min_tokens=min_tokens, beam_size=beam_size),
        seed=seed,
    )
    report = _run(plan)
    if as_json:
        plan_facts = {**dataclasses.asdict(plan), "inputs": len(plan.inputs)}
        del plan_facts["credentials"]  # a token may be among them
        write_json({"plan": plan_facts, "report": dataclasses.asdict(report)})
    else:
        loop = f"open loop, {rate:g} requests/s" if rate else f"closed loop, {plan.concurrency} callers"
        console = report_console()
        console.print(f"{model} at {target}: {loop}, {duration_s:g} s", markup=False)
        console.print(report_table(plan, report))
        for code, message in report.error_messages.items():
            console.print(f"  first {code}: {message}", markup=False)
    if not report.num_requests:
        raise OperationError(f"no request was due within the {duration_s:g} s that were measured")
    if report.num_errors == report.num_requests:
        counts = [
            f"{count:,} {code} ({report.error_messages[code]})" for code, count in report.errors.items()
        ]
        raise OperationError(
            f"{target} answered none of {report.num_requests:,} requests: {'; '.join(counts)}"
        )
    for remark in remarks(plan, report):
        note(f"note: {remark}")


def remarks(plan: "LoadPlan", report: "LoadReport") -> list[str]:
    """Returns the signs that the generator, and not the server, was the limit of a measurement."""
    notes = []
    if plan.rate and report.send_lag and report.send_lag.p99_s > _LATE_S:
        notes.append(
            f"this load generator fell behind: it sent {report.sent_per_s:,.0f} of {plan.rate:,.10g} requests/s, "
            f"one of a hundred more than {report.send_lag.p99_s:.2g} s late; the latencies include that wait"
        )
    if report.generator_cpu_share > _BUSY_SHARE:
        notes.append(
            f"this load generator used {report.generator_cpu_share:.0%} of a core:"
            " it may have been the limit, not the server"
        )
    return notes


def _texts(
    inputs: Path | None,
    target: str,
    model: str,
    version: str,
    *,
    timeout_s: float,
    credentials: Credentials,
) -> tuple[str, ...]:
    from dragoman.client import Client
    from dragoman.client.load.inputs import lines_of, read_inputs, sample_inputs

    if inputs == Path("-"):
        note_waiting_for_input()
        return lines_of(sys.stdin.buffer.read(), "standard input")
    if inputs is not None:
        return read_inputs(inputs)
    with Client(target, timeout_s=timeout_s, credentials=credentials) as client:
        return sample_inputs(client.model(model, version))


def _run(plan: "LoadPlan") -> "LoadReport":
    import asyncio

    from dragoman.client.load.generator import Progress, run_load

    with progress_bar() as show:

        def on_progress(progress: Progress) -> None:
            phase = "warming up" if progress.elapsed_s < plan.warm_up_s else "measuring"
            phase = phase if progress.elapsed_s < progress.total_s else "waiting for the last answers"
            show(f"{phase}, {progress.num_requests} requests", progress.elapsed_s, progress.total_s)

        return asyncio.run(run_load(plan, on_progress))


def report_table(plan: "LoadPlan", report: "LoadReport") -> "Table":
    """The report, a fact a row."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("requests/s", f"{report.requests_per_s:,.1f}")
    table.add_row("input tokens/s", f"{report.input_tokens_per_s:,.0f}")
    table.add_row("output tokens/s", f"{report.output_tokens_per_s:,.0f}")
    _add_distribution(table, "latency", report.latency)
    _add_distribution(table, "time to first token", report.time_to_first_token)
    if plan.rate and report.send_lag:
        table.add_row("send lag p99", _milliseconds(report.send_lag.p99_s))
    table.add_row("requests", f"{report.num_requests:,}")
    table.add_row("errors", f"{report.num_errors:,}")
    for code, count in report.errors.items():
        table.add_row(f"  {code}", f"{count:,}")
    return table


def _add_distribution(table: "Table", name: str, distribution: "Distribution | None") -> None:
    if distribution is None:
        return
    for label, value_s in (
        ("p50", distribution.p50_s),
        ("p95", distribution.p95_s),
        ("p99", distribution.p99_s),
        ("max", distribution.max_s),
    ):
        table.add_row(f"{name} {label}", _milliseconds(value_s))


def _milliseconds(value_s: float) -> str:
    return f"{value_s * 1000:,.1f} ms"
