"""Tokens: made by the command, kept as hashes, read from a file that may hold anything."""

import datetime as dt
import stat
from pathlib import Path

import pytest

from dragoman.cli.main import main
from dragoman.server.errors import CredentialsError
from dragoman.server.priority import Priority
from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import TokenTable, make_token, token_line

HASH = "0" * 64


def test_what_the_command_makes_the_server_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.toml"
    command = ["token", "create", "--tokens-file", str(path)]
    assert main([*command, "app"]) == 0
    assert (
        main([*command, "operator", "--scopes", "infer,admin", "--expires", "90d", "--best-priority", "low"])
        == 0
    )
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    assert first not in captured.err
    assert first not in path.read_text()
    assert second not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    table = TokenTable.read(path)
    app, operator = table.find(first), table.find(second)
    assert app is not None
    assert operator is not None
    assert (app.name, set(app.scopes), app.expires_s) == ("app", {Scope.INFER}, None)
    assert (operator.name, set(operator.scopes)) == ("operator", {Scope.INFER, Scope.ADMIN})
    assert (app.best_priority, operator.best_priority) == (Priority.HIGH, Priority.LOW)
    now_s = dt.datetime.now(dt.UTC).timestamp()
    assert operator.is_valid(now_s + 89.9 * 86_400)
    assert not operator.is_valid(now_s + 90.1 * 86_400)
    assert table.find(first[:-1]) is None
    assert table.find("") is None


def test_without_a_file_the_command_prints_the_line_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", "create", "app"]) == 0
    token, line = capsys.readouterr().out.splitlines()
    path = tmp_path / "tokens.toml"
    path.write_text(line)
    assert TokenTable.read(path).find(token) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["two words"], "letters, digits"),
        (["app", "--scopes", "infer,root"], "'root' is none of infer, admin, metrics"),
        (["app", "--expires", "soon"], "such as 90d"),
        (["app", "--tokens-file", "{path}"], "has a token 'app' already"),
    ],
)
def test_what_cannot_be_made(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(token_line("x", "app", [Scope.INFER], None))
    before = path.read_text()
    assert main(["token", "create", *(each.format(path=path) for each in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a = MARKER", "is not valid TOML (at line 1, column 5)"),
        ('a = "dragoman_MARKER"', "token a: hash: Field required"),
        ('a = { hash = "dragoman_MARKER", scopes = ["infer"] }', "token a: hash: String should match"),
        (f'a = {{ hash = "MARKERsha256:{HASH}", scopes = ["infer"] }}', "token a: hash: String should match"),
        (f'a = {{ hash = "sha256:{HASH}\\n", scopes = ["infer"] }}', "token a: hash: String should match"),
        (f'a = {{ hash = "sha256:{HASH}", scopes = [] }}', "token a: scopes: "),
        (f'a = {{ hash = "sha256:{HASH}", scopes = ["MARKER"] }}', "token a: scopes: "),
        (f'a = {{ hash = "sha256:{HASH}" }}', "token a: scopes: Field required"),
        (f'a = {{ hash = "sha256:{HASH}", scopes = ["infer"], expires = 2027-01-01 }}', "token a: expires: "),
        (f'a = {{ hash = "sha256:{HASH}", scopes = ["infer"], MARKER = 1 }}', "token a: "),
        (f'"dragoman_MARKER\\n" = {{ hash = "sha256:{HASH}", scopes = ["infer"] }}', "a name has other"),
        ("", "has 0 bytes"),
    ],
)
def test_a_file_that_is_not_right_is_named_and_not_repeated(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(content)
    with pytest.raises(CredentialsError) as caught:
        TokenTable.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    if "MARKER = 1" not in content:  # an unknown key is named
        assert "MARKER" not in str(caught.value)


def test_tokens_differ_and_are_long() -> None:
    tokens = {make_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(len(token) == len("dragoman_") + 43 for token in tokens)
