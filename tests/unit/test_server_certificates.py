"""The server's certificate is tried before it is used, and no message repeats what a file holds."""

import datetime as dt
import os
import time
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from dragoman.common.errors import UsageError
from dragoman.server.config import load_settings
from dragoman.server.errors import CredentialsError
from dragoman.server.security.certificates import Certificates
from dragoman.server.security.credentials import Credentials
from dragoman.server.security.files import loose_permissions

CA = trustme.CA()
FUTURE = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key."""
    leaf = CA.issue_cert("localhost", not_after=FUTURE)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return certificate, key


def test_a_sound_certificate(files: tuple[Path, Path], tmp_path: Path) -> None:
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificates = Certificates.read(*files, tmp_path / "ca.pem")
    assert certificates.expires_s == FUTURE.timestamp()
    assert certificates.client_ca == CA.cert_pem.bytes()
    assert "PRIVATE" not in repr(certificates)


def test_a_certificate_with_one_between_it_and_the_root(tmp_path: Path) -> None:
    leaf = CA.create_child_ca().issue_cert("localhost")
    assert len(leaf.cert_chain_pems) == 2
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    assert Certificates.read(certificate, key, None).expires_s > time.time()


def encrypted(key: bytes) -> bytes:
    loaded = serialization.load_pem_private_key(key, None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_a_key_with_a_password_is_not_asked_for(files: tuple[Path, Path]) -> None:
    certificate, key = files
    key.write_bytes(encrypted(key.read_bytes()))
    with pytest.raises(CredentialsError, match="has a password"):
        Certificates.read(certificate, key, None)


@pytest.mark.parametrize("place", [0, 1], ids=["certificate", "key"])
@pytest.mark.parametrize(
    "content", [b"", b"MARKER", b"-----BEGIN CERTIFICATE-----\nMARKER\n", b"\xff\x00MARKER", b"x" * 5_000_000]
)
def test_what_is_none_is_named_and_not_repeated(place: int, content: bytes, files: tuple[Path, Path]) -> None:
    files[place].write_bytes(content)
    with pytest.raises(CredentialsError) as caught:
        Certificates.read(*files, None)
    assert str(files[place]) in str(caught.value)
    assert "MARKER" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_authority_of_clients(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("MARKER")
    with pytest.raises(CredentialsError, match="clients' authorities") as caught:
        Certificates.read(*files, tmp_path / "ca.pem")
    assert "MARKER" not in str(caught.value)


def test_files_are_read_again_once_they_have_settled(files: tuple[Path, Path]) -> None:
    certificate, key = files
    overrides = (f"security.tls_certificate={certificate}", f"security.tls_key={key}")
    credentials = Credentials(load_settings(overrides=overrides).security)
    first = credentials.certificates
    assert credentials.reload() == []
    leaf = CA.issue_cert("localhost", not_after=FUTURE)
    certificate.write_bytes(leaf.cert_chain_pems[0].bytes())
    assert credentials.reload() == []  # seen; the key may follow
    key.write_bytes(leaf.private_key_pem.bytes())
    assert credentials.reload() == []
    [reload] = credentials.reload()
    assert reload.error is None
    assert credentials.certificates is not first
    key.write_text("none")
    [failed] = credentials.reload(at_once=True)
    assert failed.error is not None
    assert credentials.reload() == []  # said once
    assert credentials.certificates is not None


@pytest.mark.skipif(os.name != "posix", reason="needs permissions of POSIX")
@pytest.mark.parametrize(("mode", "wrong"), [(0o600, 0), (0o640, 0), (0o644, 1), (0o660, 1), (0o666, 1)])
def test_permissions_of_a_secret(mode: int, wrong: int, files: tuple[Path, Path]) -> None:
    certificate, key = files
    certificate.chmod(0o644)
    key.chmod(mode)
    assert len(loose_permissions([key], [certificate])) == wrong


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["security.tls_key=k"], "TLS needs both"),
        (["security.tls_client_ca=k"], "tls_client_ca needs tls_certificate"),
        (["security.http_tls=true"], "http_tls needs tls_certificate"),
        (['security.client_certificates={"a" = ["infer"]}'], "client_certificates needs tls_client_ca"),
        (["security.metrics_need_token=true"], "metrics_need_token needs tokens_file"),
        (['security.client_certificates={"a" = ["root"]}'], "'infer', 'admin' or 'metrics'"),
    ],
)
def test_settings_that_do_not_fit_together(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_settings(overrides=overrides)
