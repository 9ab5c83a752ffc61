"""A front process whose models are those of the engine's host."""

from dragoman.server.fronts.processes.process import run_front
from dragoman.server.models.hosted import HostedModels

__all__ = ["main"]


def main() -> None:
    """Called by `server/fronts/processes/__main__.py`."""
    run_front(HostedModels)
