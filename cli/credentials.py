"""Options for TLS and tokens, which every command has that calls a server."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dragoman.cli.option_groups import Command, option, options_for
from dragoman.client.credentials import Credentials

__all__ = ["with_credentials"]

_PANEL = "TLS and tokens"


def _option(name: str, help_text: str, metavar: str | None = None) -> Any:
    return typer.Option(name, metavar=metavar, help=help_text, show_default=False, rich_help_panel=_PANEL)


_OPTIONS: dict[str, Any] = {
    "tls": Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            help="Use TLS, and believe public authorities. The other --tls options switch TLS on too. (DRAGOMAN_TLS)",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ],
    "tls_ca": Annotated[
        Path | None,
        _option("--tls-ca", "PEM file with the authorities to believe. (DRAGOMAN_TLS_CA)", "FILE"),
    ],
    "tls_cert": Annotated[
        Path | None,
        _option("--tls-cert", "PEM file with this client's certificate. (DRAGOMAN_TLS_CERT)", "FILE"),
    ],
    "tls_key": Annotated[
        Path | None, _option("--tls-key", "PEM file with its private key. (DRAGOMAN_TLS_KEY)", "FILE")
    ],
    "tls_server_name": Annotated[
        str | None,
        _option(
            "--tls-server-name",
            "Name that the server's certificate has, if not the target's. (DRAGOMAN_TLS_SERVER_NAME)",
            "NAME",
        ),
    ],
    "token_file": Annotated[
        Path | None,
        _option(
            "--token-file",
            "File with a bearer token. (DRAGOMAN_TOKEN_FILE; DRAGOMAN_TOKEN has the token itself)",
            "FILE",
        ),
    ],
    "allow_plaintext_token": Annotated[
        bool | None,
        typer.Option(
            "--allow-plaintext-token",
            help="Send the token to another machine without TLS, readable for who listens. "
            "(DRAGOMAN_ALLOW_PLAINTEXT_TOKEN)",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ],
}


def with_credentials(command: Command) -> Command:
    """Put the options for TLS and tokens in the place of the command's parameter `credentials`."""
    options = [option(name, annotation) for name, annotation in _OPTIONS.items()]
    return options_for("credentials", options, Credentials.from_environment)(command)
