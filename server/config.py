"""The server's settings: TOML sections, command-line overrides, defaults written once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from common.settings import Settings, parse_overrides, read_toml

__all__ = [
    "MULTI_STEP_ROWS",
    "READ_TOGETHER",
    "EngineSettings",
    "ListenSettings",
    "LoggingSettings",
    "ModelsSettings",
    "ServerSettings",
    "load_settings",
]


MULTI_STEP_ROWS = 32
READ_TOGETHER = 8


def _check_auto(value: object) -> object:
    # Before pydantic tries the union's members one by one, which would give a message for each.
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError('must be a whole number from 1, or "auto"')


Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
CountOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_check_auto)]


class ListenSettings(Settings):
    """`[server]`: where to listen, what to accept, how to stop."""

    host: str = "127.0.0.1"
    port: Port = 8500
    """gRPC. 0: any free one; the log event `serving` names it."""
    metrics_host: str | None = None
    """None: the same as `host`."""
    metrics_port: Port = 8002
    """HTTP: /metrics, /healthz, /readyz. 0: any free one."""

    max_inputs: Count = 128
    """Most inputs in one call."""
    max_message_bytes: Count = 4 * 1024 * 1024
    """Longest message in either direction."""

    drain_delay_s: Seconds = 0.0
    """On SIGTERM: how long to go on accepting calls after readiness went off, for balancers to notice."""
    drain_timeout_s: Seconds = 30.0
    """How long running calls may then take before they are cancelled."""

    max_connection_age_s: Annotated[float, Field(gt=0)] = 300.0
    """Clients reconnect after this long, so that balancers spread them over new servers."""
    max_connection_age_grace_s: Seconds = 60.0
    """How long calls that run on an aged connection may go on."""
    keepalive_time_s: Annotated[float, Field(gt=0)] = 60.0
    """Ping a silent client this often, to notice that it is gone."""
    keepalive_timeout_s: Annotated[float, Field(gt=0)] = 20.0
    min_ping_interval_s: Annotated[float, Field(gt=0)] = 5.0
    """Clients may ping this often. gRPC's own default, 300 s, answers keepalives with GOAWAY."""


class ModelsSettings(Settings):
    """`[models]`: what to serve."""

    directory: Path = Path("models")
    """Holds <name>/<version>/bundle.json; the highest version of each name is served."""


class EngineSettings(Settings):
    """`[engine]`: how models run."""

    provider: Literal["cpu", "cuda"] = "cpu"
    kernels: Literal["auto", "avx512vnni", "avx2", "portable", "none"] = "auto"
    """Of our operators on a CPU. "auto": the best that the processor has; "none": ONNX Runtime's own operators."""
    lanes: CountOrAuto = "auto"
    """Decode loops that run side by side on the same weights. "auto": one a core, on a GPU one."""
    threads_per_lane: CountOrAuto = "auto"
    slots_per_lane: Count = 32
    """Sequences that one lane decodes together; bounds its memory."""
    max_waiting: Count = 1024
    """Sequences that may wait for a slot; more are refused with RESOURCE_EXHAUSTED."""
    max_start_tokens: Count = 2048
    """Input tokens that a lane may read before one step, so that running sequences keep their pace."""
    rows_before_spread: Count = 8
    """Rows of short inputs up to which a lane that runs is filled before an idle one starts: a step of eight rows costs
    little more than one of a single row. 1: an idle lane always starts."""
    max_start_interval: Count = 4
    """Steps that a well-filled lane lets pass before it reads again, so that sources are read together. 1: none."""
    read_together: Count = READ_TOGETHER
    """Sources that a lane reads when it reads one, if so many with beams wait and all rows are taken: in eights each
    takes a fifth of the time. 1: none before it has a row."""
    multi_step_rows: Annotated[int, Field(ge=0)] = MULTI_STEP_ROWS
    """Up to how many rows, all greedy, a lane takes several steps in one call, for bundles that can: fewer waits for
    Python, for up to three steps computed past an answer's end. 0: never."""
    prefix_cache_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """Keys and values of prompts kept for prompts that begin the same, for each generation model. 0: none."""


class LoggingSettings(Settings):
    """`[logging]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class ServerSettings(Settings):
    """Everything the server can be told."""

    server: ListenSettings = ListenSettings()
    models: ModelsSettings = ModelsSettings()
    engine: EngineSettings = EngineSettings()
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="after")
    def _check_queue_holds_one_call(self) -> Self:
        if self.server.max_inputs > self.engine.max_waiting:
            raise ValueError(
                f"server.max_inputs = {self.server.max_inputs} is more than "
                f"engine.max_waiting = {self.engine.max_waiting}: such a call could never be accepted"
            )
        return self


def load_settings(
    config: Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> ServerSettings:
    """Read `config`, lay command-line options and then `section.key=value` overrides over it.

    Args:
        config: a TOML file; None: defaults only.
        options: dotted key to value, such as `{"server.port": 8500}`; a value of None means not given.
        overrides: `section.key=value`, as `--set` takes them.

    Raises:
        SettingsError: the file cannot be read, a key is unknown or a value does not fit.
    """
    values = read_toml(config) if config else {}
    for dotted, value in (options or {}).items():
        if value is not None:
            section, _, key = dotted.partition(".")
            values[section] = {**values.get(section, {}), key: value}
    values = parse_overrides(_plain(values), overrides)
    return ServerSettings.load(values, source=str(config) if config else "settings")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as strings: overrides are merged on plain TOML values."""
    return {
        key: _plain(value) if isinstance(value, dict) else str(value) if isinstance(value, Path) else value
        for key, value in values.items()
    }
