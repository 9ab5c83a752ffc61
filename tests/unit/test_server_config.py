"""Settings: a file, command-line options over it, overrides over both; mistakes in one line."""

from pathlib import Path

import pytest

from dragoman.common.errors import SettingsError
from dragoman.server.config import ServerSettings, load_settings


def test_defaults() -> None:
    settings = load_settings()
    assert settings == ServerSettings()
    assert (settings.server.port, settings.server.metrics_port) == (8500, 8002)


def test_options_win_over_the_file_and_overrides_over_both(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('[server]\nhost = "::1"\nport = 1\n[engine]\nlanes = 3\n[models]\ndirectory = "a"\n')
    settings = load_settings(
        config,
        options={"server.port": 2, "server.host": None, "models.directory": Path("b")},
        overrides=["engine.lanes=auto", "logging.level=debug"],
    )
    assert settings.server.host == "::1"
    assert settings.server.port == 2
    assert settings.models.directory == Path("b")
    assert settings.engine.lanes == "auto"
    assert settings.logging.level == "debug"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("server.prt=1", "unknown key 'server.prt'; did you mean 'port'?"),
        ("server.port=70000", "server.port = 70000"),
        ("server.drain_delay_s=-1", "server.drain_delay_s = -1"),
        ("server.drain_timeout_s=inf", "server.drain_timeout_s = inf"),
        ("engine.lanes=0", 'engine.lanes = 0: must be a whole number from 1 to 1,024, or "auto"'),
        ("engine.lanes=many", "engine.lanes = 'many': must be a whole number from 1 to 1,024, or \"auto\""),
        ("server.port=8002", "port and metrics_port are both 8002: gRPC and HTTP need a port each"),
        ("logging.format=xml", "logging.format = 'xml'"),
        ("engine.max_waiting=5", "server.max_inputs = 128 is more than engine.max_waiting = 5"),
    ],
)
def test_a_mistake_is_one_line_with_the_value(override: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides=[override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*nope\.toml: No such file"):
        load_settings(tmp_path / "nope.toml")


@pytest.mark.parametrize(
    "overrides",
    [
        ["server.port=0", "server.metrics_port=0"],  # any free ones
        ["server.port=8002", "server.metrics_host=127.0.0.2"],
        ["server.port=8002", "server.host=unix:/run/dragoman.sock"],
    ],
)
def test_equal_ports_that_are_not_one_address(overrides: list[str]) -> None:
    load_settings(overrides=overrides)


def test_equal_ports_on_all_addresses_and_on_one() -> None:
    with pytest.raises(SettingsError, match="are both 8002"):
        load_settings(overrides=["server.port=8002", "server.metrics_host=0.0.0.0"])


def test_beside_a_unix_domain_socket_http_is_on_the_loopback() -> None:
    assert load_settings(overrides=["server.host=unix:/run/dragoman.sock"]).server.http_host == "127.0.0.1"
    assert load_settings(overrides=["server.host=0.0.0.0"]).server.http_host == "0.0.0.0"
