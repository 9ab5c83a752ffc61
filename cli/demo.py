"""`dragoman demo`: the whole path, from no data at all to served answers, in three minutes."""

import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dragoman.cli.export import export_lines
from dragoman.cli.options import DEFAULT_TIMEOUT_S, Overrides, examples
from dragoman.cli.output import report_console
from dragoman.cli.progress import progress_bar
from dragoman.common.extras import require_extra

if TYPE_CHECKING:
    from rich.console import Console

    from dragoman.cli.server_process import ServerProcess

__all__ = ["EPILOG", "demo"]

EPILOG = examples("dragoman demo  # or: make demo")

RECIPE = "dates"
NUM_TEST_DATES = 1000

_QUESTIONS = (
    "le 14 juillet 1989",
    "Tuesday, March 3rd, 2024",
    "3. Oktober 1990",
    "mercredi 5 juin 2019",
    "21 de septiembre de 1956",
    "2 giugno 1946",
    "sexta-feira, 25 de abril de 1975",
    "12 maart 2031",
)
_METRICS = (
    "dragoman_requests_total",
    "dragoman_input_tokens_total",
    "dragoman_output_tokens_total",
    "dragoman_batch_rows_sum",
    "dragoman_batch_rows_count",
    "dragoman_slots_total",
    "dragoman_threads",
    "dragoman_model_load_duration_seconds",
    "process_resident_memory_bytes",
)


def demo(
    *,
    folder: Annotated[
        Path,
        typer.Option("--in", metavar="DIR", help="Folder that the folders runs and models are made in."),
    ] = Path(),
    overrides: Overrides = None,
) -> None:
    """Train the recipe dates, export the model, serve it, translate over gRPC, and stop the server.

    The command needs no data, no network and no GPU. It writes the run runs/dates and the bundle models/dates/1. If
    these exist already, it takes the next free names and does not touch them.
    """
    require_extra("train")
    from dragoman.cli.server_process import running_server
    from dragoman.export.destination import bundle_destination, choose_bundle_folder

    begin_s = time.perf_counter()
    run, bundle = _free_run_folder(folder / "runs"), choose_bundle_folder(folder / "models" / RECIPE)
    bundle_destination(bundle, run, replaces=False).check()
    console = report_console()
    _train(console, run, overrides or [])
    _export(console, run, bundle)
    _heading(console, "3. Serve and ask")
    with running_server(bundle.parent.parent) as server:
        console.print(
            f"`dragoman serve --models {bundle.parent.parent}` answers after {server.start_s:.2f} s"
        )
        _ask(console, server.target)
        _evaluate(console, server.target)
        _show_metrics(console, server)
        console.print(f"SIGTERM: the server finished and left with exit code 0 in {server.stop():.2f} s")
    _sum_up(console, run, bundle, time.perf_counter() - begin_s)


def _free_run_folder(runs: Path) -> Path:
    names = itertools.chain([RECIPE], (f"{RECIPE}-{number}" for number in itertools.count(2)))
    return next(runs / name for name in names if not os.path.lexists(runs / name))


def _train(console: "Console", run: Path, overrides: list[str]) -> None:
    from dragoman.model.errors import TrainingStopped
    from dragoman.model.recipe import load_recipe
    from dragoman.model.training.train import train

    recipe = load_recipe(RECIPE, overrides)
    _heading(console, "1. Train")
    console.print(f"recipe {recipe.name}: {recipe.description}")
    begin_s = time.perf_counter()
    try:
        train(recipe, run)
    except TrainingStopped as stopped:  # the demonstration ends with it
        raise KeyboardInterrupt from stopped
    console.print(f"trained in {time.perf_counter() - begin_s:.0f} s: {run}")


def _export(console: "Console", run: Path, bundle: Path) -> None:
    from dragoman.export.exporter import export_run

    _heading(console, "2. Export to ONNX and verify")
    begin_s = time.perf_counter()
    with progress_bar() as progress:
        report = export_run(run, bundle, progress=progress)
    for line in export_lines(report):
        console.print(line)
    console.print(f"exported and verified in {time.perf_counter() - begin_s:.0f} s")


def _ask(console: "Console", target: str) -> None:
    from rich import box
    from rich.table import Table

    from dragoman.client import Client, Credentials

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("asked over gRPC")
    table.add_column("answered")
    table.add_column("tokens", justify="right")
    table.add_column("latency", justify="right")
    with Client(target, credentials=Credentials()) as client:
        client.translate(_QUESTIONS[0], model=RECIPE)  # connects, so that no question pays for that
        for question in _QUESTIONS:
            begin_s = time.perf_counter()
            [answer] = client.translate(question, model=RECIPE)
            latency_s = time.perf_counter() - begin_s
            table.add_row(question, answer.text, str(answer.num_output_tokens), f"{latency_s * 1000:.1f} ms")
    console.print(table)


def _evaluate(console: "Console", target: str) -> None:
    from dragoman.cli.served_evaluation import evaluate_served
    from dragoman.client.credentials import Credentials

    with progress_bar() as progress:
        evaluation = evaluate_served(
            target,
            RECIPE,
            limit=NUM_TEST_DATES,
            timeout_s=DEFAULT_TIMEOUT_S,
            credentials=Credentials(),
            progress=progress,
        )
    console.print(
        f"{evaluation.metrics['exact_match']:.2f} % of {evaluation.num_examples} dates that training never"
        f" saw are exactly right (over gRPC, in {evaluation.seconds:.1f} s)"
    )


def _show_metrics(console: "Console", server: "ServerProcess") -> None:
    import urllib.request

    from prometheus_client.parser import text_string_to_metric_families

    _heading(console, "4. Some of its Prometheus metrics")
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        text = response.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _METRICS:
                labels = ", ".join(f'{name}="{value}"' for name, value in sample.labels.items())
                value = f"{sample.value:,.3f}".removesuffix(".000")
                console.print(sample.name + (f"{{{labels}}}" if labels else ""), value, markup=False)


def _heading(console: "Console", text: str) -> None:
    console.print(f"\n{text}", style="bold", markup=False)


def _sum_up(console: "Console", run: Path, bundle: Path, seconds: float) -> None:
    _heading(console, f"Done in {seconds:.0f} s")
    console.print(f"{run}: the run (weights, checkpoints, metrics, TensorBoard)")
    console.print(f"{bundle}: the bundle, ready to be served")
    console.print("Next:", style="bold")
    for command in (
        f"dragoman serve --models {bundle.parent.parent}",
        f'dragoman translate --model {RECIPE} "{_QUESTIONS[0]}"',
        f"dragoman bench --model {RECIPE} --concurrency 32",
        "dragoman --help",
    ):
        console.print(f"  {command}", style="cyan", markup=False)
