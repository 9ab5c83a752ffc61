"""Settings: a file, command-line options over it, overrides over both; mistakes in one line."""

from pathlib import Path

import pytest

from common.errors import SettingsError
from server.config import ServerSettings, load_settings


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
