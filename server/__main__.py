"""`python -m dragoman.server`: what `dragoman serve` does, with nothing but the server installed."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dragoman.server.operations.stop_signals import StopSignals, open_closed_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and serve; returns the exit code."""
    open_closed_streams()
    with StopSignals() as signals:  # first of all: the imports that follow take a second
        return _serve(_parser().parse_args(arguments), signals)


def _serve(options: argparse.Namespace, signals: StopSignals) -> int:
    from dragoman.common.errors import DragomanError, UsageError  # noqa: PLC0415
    from dragoman.common.extras import require_extra  # noqa: PLC0415
    from dragoman.server.models.spawning import early_host  # noqa: PLC0415

    try:
        require_extra("serve")
        with early_host() as spawned:  # it imports while this process does
            from dragoman.server.config import load_settings  # noqa: PLC0415

            read_settings = partial(
                load_settings,
                options.config,
                options={
                    "models.directory": options.models,
                    "server.host": options.host,
                    "server.port": options.port,
                    "server.metrics_host": options.metrics_host,
                    "server.metrics_port": options.metrics_port,
                    "logging.level": options.log_level,
                    "logging.format": options.log_format,
                },
                overrides=options.set,
            )
            settings = read_settings()
            from dragoman.server.models.starting import start_host  # noqa: PLC0415
            from dragoman.server.operations.grpc_core import set_up_grpc_core  # noqa: PLC0415

            host = start_host(settings, spawned)
    except DragomanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    set_up_grpc_core()
    from dragoman.server.serving import serve  # noqa: PLC0415 a wrong option is answered before the heavy imports

    return serve(settings, signals, host=host, read_settings=read_settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dragoman.server", description="Serve models over gRPC.")
    parser.add_argument("--models", type=Path, metavar="DIR", help="holds <name>/<version>/bundle.json")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="gRPC port; 0: any free one")
    parser.add_argument("--metrics-host", metavar="HOST", help="address for HTTP; default: the same")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="HTTP port of /metrics and /readyz")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML settings")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="section.key=value")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--log-format", choices=["console", "json"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
