"""Certificates of an authority of the test's own, as files."""

from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme

NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Authority:
    """Signs what a server and its clients show to each other."""

    folder: Path
    ca: trustme.CA

    @classmethod
    def in_folder(cls, folder: Path) -> "Authority":
        authority = cls(folder, trustme.CA())
        authority.ca.cert_pem.write_to_path(folder / "ca.pem")
        authority.renew()
        return authority

    @property
    def settings(self) -> tuple[str, ...]:
        """Overrides that let a server use the certificate."""
        return (
            f"security.tls_certificate={self.folder / 'cert.pem'}",
            f"security.tls_key={self.folder / 'key.pem'}",
        )

    @property
    def root(self) -> bytes:
        return self.ca.cert_pem.bytes()

    def renew(self, *names: str) -> None:
        """Let the server's files be those of another certificate, as a tool that renews certificates does it."""
        leaf = self.ca.issue_cert(*NAMES, *names)
        replace(self.folder / "key.pem", leaf.private_key_pem.bytes())
        replace(self.folder / "cert.pem", b"".join(pem.bytes() for pem in leaf.cert_chain_pems))

    def client(self, *names: str, common_name: str | None = None) -> grpc.ChannelCredentials:
        """What a client shows that has a certificate for `names`; none: it has no certificate."""
        if not names:
            return grpc.ssl_channel_credentials(self.root)
        leaf = self.ca.issue_cert(*names, common_name=common_name)
        chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        return grpc.ssl_channel_credentials(self.root, leaf.private_key_pem.bytes(), chain)


def replace(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, in the place of another one."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.chmod(0o600)
    new.replace(path)
