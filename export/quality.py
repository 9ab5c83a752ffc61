"""Quality of a bundle, measured through the backend that serves it."""

from pathlib import Path
from export.held_out import HeldOut
from model.run import Run
from server.backend import Backend
from server.bundle import QualityFigure
from server.lane import Finished


def measure_quality(
    backend: Backend, run: Run, examples: HeldOut, answers: list[Finished], data: Path | None
) -> tuple[QualityFigure, ...]:
    return ()
