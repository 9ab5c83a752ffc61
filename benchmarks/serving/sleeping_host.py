"""The engine's host process with graphs that sleep; started by a server, or by `sleeping_engine.py`."""

from benchmarks.serving.sleeping_graphs import install

from dragoman.server.models import host


def main() -> None:
    """As the host's own, which a server runs."""
    install()
    host.main()
