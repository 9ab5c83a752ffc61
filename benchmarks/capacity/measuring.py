"""What one pod does: calls a second by the number of calls in it, and how long it takes to start."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.capacity.simulation import PodSpeed
from benchmarks.serving.load import Service, closed_loop
from benchmarks.serving.services import dragoman_requests
from rich.console import Console

from dragoman.cli.server_process import running_server
from dragoman.cli.top.pages import PageSource
from dragoman.client.credentials import Credentials
from dragoman.server.bundle.reader import Bundle

__all__ = ["IN_FLIGHT", "measured", "speed_of"]

IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128)
_METHOD = "/dragoman.v1.TranslationService/Translate"
_NUM_CONNECTIONS = 8


def measured(folder: Path, console: Console, *, rounds: int = 3, duration_s: float = 2.0) -> dict[str, Any]:
    """Serve the translation bundle in `folder` and ask it with ever more callers, who take turns in each round.

    The load generator runs on the same cores, so that a pod on cores of its own does more.
    """
    bundle = Bundle.read(folder)
    texts = [example.text for example in bundle.manifest.golden_examples]
    with tempfile.TemporaryDirectory() as models:
        place = Path(models) / bundle.name
        place.mkdir()
        (place / str(bundle.version)).symlink_to(folder.resolve())
        with running_server(Path(models)) as server:
            page = PageSource(f"127.0.0.1:{server.metrics_port}", Credentials())
            service = Service("dragoman", server.target, _METHOD, dragoman_requests(bundle.name, texts, 1))
            closed_loop(service, 8, 1.0, num_connections=_NUM_CONNECTIONS)
            rates: dict[int, list[float]] = {number: [] for number in IN_FLIGHT}
            for number in rounds * IN_FLIGHT:
                load = closed_loop(service, number, duration_s, num_connections=_NUM_CONNECTIONS)
                rates[number].append(len(load.latencies_s) / load.seconds)
                console.print(f"{number} callers: {rates[number][-1]:,.0f} calls a second")
            totals = page.fetch()
            num_calls = sum(totals["requests_total"].values())
            return {
                "model": bundle.name,
                "precision": bundle.manifest.precision,
                "start_s": server.start_s,
                "num_slots": int(sum(totals["slots_total"].values())),
                "tokens_per_call": sum(totals["output_tokens_total"].values()) / num_calls,
                "in_flight": list(IN_FLIGHT),
                "calls": [statistics.median(rates[number]) for number in IN_FLIGHT],
            }


def speed_of(figures: dict[str, Any]) -> PodSpeed:
    """The speed of a pod as `measured` gave it."""
    in_flight: Sequence[float] = figures["in_flight"]
    return PodSpeed(in_flight, figures["calls"], figures["num_slots"], figures["start_s"])
