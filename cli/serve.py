"""`dragoman serve`: the server, in this process."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from dragoman.cli.options import examples
from dragoman.common.extras import require_extra

__all__ = ["EPILOG", "serve"]

EPILOG = examples(
    "dragoman serve --models models",
    "dragoman serve --models models --host 0.0.0.0 --port 8500 --metrics-port 8002",
    "dragoman serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --tokens-file tokens.toml",
    "dragoman serve --config server.toml --set engine.slots_per_lane=64",
)

_PANEL = "Where"
_SECURITY = "TLS and tokens"

LogLevel = Literal["debug", "info", "warning", "error"]


def serve(
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with the models. Each bundle is in DIR/NAME/VERSION.",
            show_default="models",
        ),
    ] = None,
    *,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="Address that the server listens on. unix:PATH is a Unix domain socket.",
            show_default="127.0.0.1",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Port for gRPC. 0: any free port.",
            show_default="8500",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="HTTP port for /metrics, /healthz and /readyz. 0: any free port.",
            show_default="8002",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="PEM file with the server's certificate. With --tls-key it switches TLS on.",
            show_default=False,
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="PEM file with the certificate's private key.",
            show_default=False,
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="PEM file with authorities. Clients have to show a certificate of one of them.",
            show_default=False,
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    tokens_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Hashes of the bearer tokens that callers need. dragoman token create makes tokens.",
            show_default=False,
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Server configuration in TOML. Options on the command line override it.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one setting, such as engine.slots_per_lane=64. May be repeated.",
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(help="The log shows lines of this level and above.", show_default="info"),
    ] = None,
) -> None:
    """Serve models over gRPC until SIGTERM or Ctrl-C. The server finishes running calls before it ends.

    A second signal ends the process at once. SIGQUIT, SIGUSR1 and SIGUSR2 end it at once too. SIGHUP has it read its
    configuration, certificates and tokens again.
    """
    from dragoman.server.operations.stop_signals import StopSignals

    with StopSignals() as signals:  # first of all: what follows takes a second
        require_extra("serve")
        from dragoman.server.models.spawning import early_host

        with early_host() as spawned:  # it imports while this process does
            from dragoman.server.config import load_settings

            read_settings = partial(
                load_settings,
                config,
                options={
                    "models.directory": models,
                    "server.host": host,
                    "server.port": port,
                    "server.metrics_port": metrics_port,
                    "security.tls_certificate": tls_cert,
                    "security.tls_key": tls_key,
                    "security.tls_client_ca": tls_client_ca,
                    "security.tokens_file": tokens_file,
                    "logging.level": log_level,
                },
                overrides=overrides or (),
            )
            settings = read_settings()
            from dragoman.server.models.starting import start_host
            from dragoman.server.operations.grpc_core import set_up_grpc_core

            engine_host = start_host(settings, spawned)
        set_up_grpc_core()
        from dragoman.server.serving import serve as serve_until_stopped

        # Whoever collects a log in JSON expects the error to be a part of it.
        raise_errors = settings.logging.format != "json"
        code = serve_until_stopped(
            settings, signals, raise_errors=raise_errors, host=engine_host, read_settings=read_settings
        )
    raise typer.Exit(code)
