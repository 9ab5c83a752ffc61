"""What the way through gRPC leaves of the engine's own rate: the served answers a second beside those in process."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.serving.dragoman_systems import EngineCallers, num_tokens, repeat
from benchmarks.serving.load import Service, closed_loop
from benchmarks.serving.services import dragoman_requests
from benchmarks.serving.subject import Subject
from rich.console import Console

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.models.loader import load_backend

__all__ = ["ServedShare", "served_shares"]

_WAYS: Final = ((64, 1), (4, 32))  # callers, texts a call


@dataclasses.dataclass(frozen=True)
class ServedShare:
    """One way to call, in turn with the engine in process.

    Attributes:
        served: answers a second, a round each.
        in_process: of the same texts, as token ids, all submitted at once to an engine of default settings.
    """

    name: str
    served: Sequence[float]
    in_process: Sequence[float]

    @property
    def share(self) -> float:
        """The median over rounds of one by the other."""
        return statistics.median(
            served / own for served, own in zip(self.served, self.in_process, strict=True)
        )


def served_shares(
    service: Service,
    model: str,
    bundle: Path,
    subject: Subject,
    num_rounds: int,
    duration_s: float,
    console: Console,
) -> list[ServedShare]:
    """Callers in closed loops, a text a call and many, and the engine in this process, in turn.

    The callers run in this process too, on the same cores as the server: what they take is counted against it.

    Raises:
        RuntimeError: a call failed.
    """
    callers = EngineCallers()
    settings = EngineSettings(max_waiting=len(subject.inputs))
    callers.open(load_backend(Bundle.read(bundle), settings), settings)
    parameters = DecodingParameters(max_tokens=subject.dims.max_target_tokens + 1)

    def in_process() -> float:
        reading = repeat(lambda: num_tokens(callers.ask(subject.inputs, parameters)), duration_s)
        return len(subject.inputs) / reading.seconds

    def serve(num_callers: int, num_texts: int) -> Callable[[], float]:
        requests = dragoman_requests(model, subject.texts, num_texts)
        bulk = dataclasses.replace(service, requests=requests)
        return lambda: num_texts * closed_loop(bulk, num_callers, duration_s).throughput

    ways = {
        f"{num_callers} callers, {num_texts} text{'s' * (num_texts > 1)} a call": serve(
            num_callers, num_texts
        )
        for num_callers, num_texts in _WAYS
    }
    served: dict[str, list[float]] = {name: [] for name in ways}
    own: list[float] = []
    try:
        for number in range(num_rounds):
            with console.status(f"served and in process, round {number + 1}"):
                own.append(in_process())
                for name, run in ways.items():
                    served[name].append(run())
    finally:
        callers.close()
    return [ServedShare(name, rates, own) for name, rates in served.items()]
