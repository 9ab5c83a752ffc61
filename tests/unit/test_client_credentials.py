"""What a client shows of itself: where it comes from, where it may go, and that nobody else sees it."""

import os
from pathlib import Path

import pytest

from dragoman import Client
from dragoman.client.credentials import Credentials, Protection, TokenSource
from dragoman.common.errors import UsageError

TOKEN = "dragoman_MARKER"
FAR = "dns:///server.example:8500"
NEAR = "dns:///localhost:8500"


def test_what_the_environment_names_is_used_unless_something_else_is_given(tmp_path: Path) -> None:
    environment = {
        "DRAGOMAN_TLS": "true",
        "DRAGOMAN_TLS_CA": "env.pem",
        "DRAGOMAN_TLS_SERVER_NAME": "",
        "DRAGOMAN_TOKEN": TOKEN,
    }
    assert Credentials.from_environment(environment) == Credentials(tls=True, tls_ca="env.pem", token=TOKEN)
    given = Credentials.from_environment(environment, tls_ca="given.pem", tls=False, token_file=tmp_path)
    assert given == Credentials(tls_ca="given.pem", token_file=tmp_path)
    assert Credentials.from_environment({}) == Credentials()
    assert Credentials.from_environment(environment, tls=False) == Credentials(token=TOKEN)


def test_a_switch_that_is_neither_on_nor_off_is_no_plain_text() -> None:
    with pytest.raises(UsageError, match="DRAGOMAN_TLS='ture'"):
        Credentials.from_environment({"DRAGOMAN_TLS": "ture"})
    assert not Credentials.from_environment({"DRAGOMAN_TLS": "off"}).uses_tls


@pytest.mark.parametrize("name", ["tls_ca", "tls_server_name", "tls"])
def test_each_option_of_tls_switches_it_on(name: str) -> None:
    assert Credentials(**{name: "x"}).uses_tls  # type: ignore[arg-type]
    assert not Credentials().uses_tls


def test_a_token_goes_to_another_machine_over_tls_only() -> None:
    plain = Credentials(token=TOKEN)
    with pytest.raises(UsageError, match=r"server\.example:8500 in plain text") as caught:
        plain.token_for(FAR)
    assert TOKEN not in str(caught.value)
    allowed = Credentials(token=TOKEN, allow_plaintext_token=True)
    for credentials, target in (
        (plain, NEAR),
        (plain, "unix:/run/dragoman.sock"),
        (Credentials(token=TOKEN, tls=True), FAR),
        (allowed, FAR),
    ):
        token = credentials.token_for(target)
        assert token is not None
        assert token.metadata() == (("authorization", f"Bearer {TOKEN}"),)


def test_a_client_refuses_to_send_a_token_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_TOKEN", TOKEN)
    with pytest.raises(UsageError, match="in plain text"):
        Client("server.example:8500")


def test_no_representation_has_the_token(tmp_path: Path) -> None:
    credentials = Credentials(token=TOKEN, tls=True)
    for thing in (credentials, credentials.token_for(FAR), Protection.of(credentials, FAR)):
        assert TOKEN not in repr(thing)
        assert TOKEN not in str(thing)


def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    source = TokenSource(None, path)
    assert source.metadata() == (("authorization", "Bearer first"),)
    path.with_suffix(".new").write_text("second\n")
    path.with_suffix(".new").replace(path)
    assert source.metadata() == (("authorization", "Bearer second"),)
    path.unlink()
    assert source.metadata() == (("authorization", "Bearer second"),)
    assert str(path) in repr(source)


@pytest.mark.parametrize("content", ["", "two words", "nonascii-é", "MARKER\nMARKER"])
def test_what_is_no_token_is_refused_and_not_repeated(content: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"token") as caught:
        Credentials(token_file=path).token_for(NEAR)
    assert "MARKER" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tls_cert": "a.pem"}, "needed together"),
        ({"tls_key": "a.pem"}, "needed together"),
        ({"token": "MARKER", "token_file": "a"}, "give one of them"),
    ],
)
def test_what_does_not_fit_together(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Credentials(**given)  # type: ignore[arg-type]
    assert "MARKER" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"cannot read {tmp_path}{os.sep}none \(--tls-ca\): No such file"):
        Credentials(tls_ca=tmp_path / "none").channel_credentials()
