"""The server's side of TLS for gRPC, with a certificate that may change while connections last."""

import grpc

from dragoman.server.security.certificates import Certificates
from dragoman.server.security.credentials import Credentials

__all__ = ["server_credentials"]


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials | None:
    """Returns the credentials of gRPC's port; None for plain text.

    gRPC asks at each handshake for a certificate that is new. Connections that last keep the one that they began with.
    """
    handed_over = credentials.certificates
    if handed_over is None:
        return None

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC's threads. Two at one time may hand over the same certificate: gRPC takes both."""
        nonlocal handed_over
        certificates = credentials.certificates
        if certificates is None or certificates is handed_over:
            return None
        handed_over = certificates
        return _configuration(certificates)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(handed_over),
        fetch,  # type: ignore[arg-type]  # the stubs do not know that it may return None
        require_client_authentication=handed_over.client_ca is not None,
    )


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.chain)], certificates.client_ca
    )
