"""Settings of the section [security]: whom the server believes, and what it proves of itself."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from dragoman.common.settings import Settings

__all__ = ["SecuritySettings"]


class SecuritySettings(Settings):
    """TLS, tokens and certificates of clients. All files are read again when they change. docs/security.md has the
    commands.
    """

    tls_certificate: Path | None = None
    """PEM file with the server's certificate and those between it and the root. With `tls_key` it switches TLS on for
    gRPC."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key, without a password."""
    tls_client_ca: Path | None = None
    """PEM file with the certificates of authorities. A gRPC client then has to show a certificate that one of them has
    signed (mutual TLS)."""
    client_certificates: dict[str, tuple[Literal["infer", "admin", "metrics"], ...]] = Field({})
    """Scopes by the name in a client's certificate: one of its subject alternative names, or its common name. `"*"` is
    any other certificate. It needs `tls_client_ca`, and switches authentication on."""
    tokens_file: Path | None = None
    """TOML file with the hashes of bearer tokens, as `dragoman token create` prints them. It switches authentication
    on: a call without a token, or a certificate of `client_certificates`, is refused; health checks are not."""
    http_tls: bool = False
    """Whether metrics and probes are served over TLS too, with the same certificate. Their clients show none."""
    metrics_need_token: bool = False
    """Whether /metrics asks for a bearer token with the scope `metrics`. Probes ask for none."""

    @property
    def asks_for_credentials(self) -> bool:
        """Whether authentication is on."""
        return self.tokens_file is not None or bool(self.client_certificates)

    @model_validator(mode="after")
    def _check_keys_fit(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key: TLS needs both")
        for key in ("tls_client_ca", "http_tls"):
            if getattr(self, key) and self.tls_certificate is None:
                raise ValueError(f"{key} needs tls_certificate and tls_key")
        if self.client_certificates and self.tls_client_ca is None:
            raise ValueError("client_certificates needs tls_client_ca")
        if self.metrics_need_token and self.tokens_file is None:
            raise ValueError("metrics_need_token needs tokens_file")
        return self
