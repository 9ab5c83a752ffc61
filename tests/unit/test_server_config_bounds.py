"""No numeric setting takes a size that the server, gRPC or a thread cannot have."""

from collections.abc import Iterator
from typing import Any

import pytest

from dragoman.common.errors import SettingsError
from dragoman.server.config import ServerSettings, load_settings
from dragoman.server.fronts.grpc.listening import channel_options

GRPC_INT = 2**31 - 1
"""Channel arguments are C's int; as a time its largest value means "never"."""


def numeric_settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """`section.key` and JSON schema of every setting that takes a number."""
    schema = ServerSettings.model_json_schema()
    for section, reference in schema["properties"].items():
        definition = schema["$defs"][reference["$ref"].rpartition("/")[2]]
        for key, value in definition["properties"].items():
            for form in value.get("anyOf", [value]):
                if form.get("type") in {"integer", "number"}:
                    yield f"{section}.{key}", form


NUMERIC = dict(numeric_settings())


@pytest.mark.parametrize("key", NUMERIC)
def test_every_number_has_a_least_and_a_most(key: str) -> None:
    form = NUMERIC[key]
    assert "minimum" in form or "exclusiveMinimum" in form
    assert "maximum" in form or "exclusiveMaximum" in form


@pytest.mark.parametrize("value", ["99999999999999", "1" + "0" * 400, "-1", "inf", "-inf", "nan", "1e400"])
@pytest.mark.parametrize("key", NUMERIC)
def test_an_impossible_size_is_one_line_with_the_key(key: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides=[f"{key}={value}"])
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_grpc_takes_the_largest_and_the_smallest_that_is_allowed() -> None:
    for bound in ("maximum", "minimum"):
        listening = {key: form[bound] for key, form in NUMERIC.items() if key.startswith("server.")}
        listening["server.metrics_port"] = 8002  # the two ports differ
        settings = load_settings(options={**listening, "engine.max_waiting": 1_000_000})
        for name, value in channel_options(settings.server, 64):
            assert isinstance(value, int)
            assert 0 <= value <= GRPC_INT, name
            assert value < GRPC_INT or not name.endswith("_ms"), f"{name} would mean never"


@pytest.mark.parametrize("value", ["0", "1025", "true", "1.5", "99999999999999"])
def test_lanes_are_as_many_threads_as_a_machine_may_have(value: str) -> None:
    with pytest.raises(SettingsError, match=r'must be a whole number from 1 to 1,024, or "auto"'):
        load_settings(overrides=[f"engine.lanes={value}"])


def test_a_message_holds_a_small_call() -> None:
    with pytest.raises(SettingsError, match=r"max_message_bytes.*1,?024"):
        load_settings(overrides=["server.max_message_bytes=1"])
