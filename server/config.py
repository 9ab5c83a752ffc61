"""The server's settings: TOML sections, command-line overrides, defaults written once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dragoman.common.settings import Settings, parse_overrides, read_toml
from dragoman.server.priority import DEFAULT_WEIGHTS, Priority, Weights
from dragoman.server.settings.admission import AdmissionSettings
from dragoman.server.settings.security import SecuritySettings
from dragoman.server.settings.tracing import TracingSettings

__all__ = [
    "EngineSettings",
    "ListenSettings",
    "LoggingSettings",
    "ModelsSettings",
    "ServerSettings",
    "is_unix",
    "load_settings",
]


_MAX_MILLISECONDS_S = 2_000_000.0
"""23 days: gRPC counts milliseconds in 32 bits with a sign, of which 2^31 - 1 stands for "never"."""
_MAX_MESSAGE_BYTES = 2**31 - 1
"""gRPC's own limit: lengths are 32 bits with a sign."""
_MIN_MESSAGE_BYTES = 1024
"""A small call with its answer, or a refusal with its reason, has to fit."""
_MAX_THREADS = 1024
"""More than any processor has cores. Each lane is a thread or a process, with memory of its own."""
_MAX_FRONTS = 64
"""Each takes tens of megabytes, and a socket to each lane."""
_MAX_ROWS = 65_536
"""Rows of one step. A step of a tenth of them keeps every row waiting for seconds."""
_MAX_WAITING = 1_000_000
"""A waiting sequence takes some kilobytes of Python's memory: a million take gigabytes."""
_MAX_CONNECTIONS = 1_000_000
"""A connection takes a file and some tens of kilobytes."""
_MIN_METADATA_BYTES = 1024
"""The metadata that every client sends, with a token, has to fit."""
_MAX_METADATA_BYTES = 1024 * 1024
_MAX_WAITING_TOKENS = 10**9
"""Python keeps some bytes for each: a thousand million take gigabytes."""
_MAX_WEIGHT = 1000
"""A priority of weight 1 beside it waits for a thousand sequences, which takes seconds."""
_MAX_STREAMS = 65_536
"""Open calls of one connection. HTTP/2 allows more, but no server's memory does."""
_MAX_CACHE_BYTES = 2**40
"""1 TiB. What the machine has is checked at start; no machine has more."""


_UNIX_SCHEMES = ("unix:", "unix-abstract:")


def is_unix(host: str) -> bool:
    """Whether `host` names a Unix domain socket instead of a host."""
    return host.startswith(_UNIX_SCHEMES)


def _count_or_auto(most: int) -> BeforeValidator:
    def check(value: object) -> object:
        # Before pydantic tries the union's members one by one, which would give a message for each.
        if value == "auto" or (type(value) is int and 1 <= value <= most):
            return value
        raise ValueError(f'must be a whole number from 1 to {most:,}, or "auto"')

    return BeforeValidator(check)


Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=_MAX_MILLISECONDS_S, allow_inf_nan=False)]
SecondsFromOneMillisecond = Annotated[float, Field(ge=0.001, le=_MAX_MILLISECONDS_S, allow_inf_nan=False)]
SecondsFromOne = Annotated[float, Field(ge=1, le=_MAX_MILLISECONDS_S, allow_inf_nan=False)]
Waiting = Annotated[int, Field(ge=1, le=_MAX_WAITING)]
WaitingTokens = Annotated[int, Field(ge=0, le=_MAX_WAITING_TOKENS)]
Weight = Annotated[int, Field(ge=1, le=_MAX_WEIGHT)]
Rows = Annotated[int, Field(ge=1, le=_MAX_ROWS)]
ThreadsOrAuto = Annotated[
    Annotated[int, Field(ge=1, le=_MAX_THREADS)] | Literal["auto"], _count_or_auto(_MAX_THREADS)
]


class ListenSettings(Settings):
    """Where to listen, what to accept, how to stop."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 listens on all. `unix:PATH` is a Unix domain socket for gRPC; `port` has no
    meaning then."""
    port: Port = 8500
    """Port for gRPC. 0: any free port; the log event `serving` names it."""
    metrics_host: str | None = None
    """Address for HTTP. Left out: the same as `host`; 127.0.0.1 where `host` is a Unix domain socket."""
    metrics_port: Port = 8002
    """Port for /metrics, /healthz and /readyz over HTTP. 0: any free port."""

    fronts: Annotated[
        Annotated[int, Field(ge=1, le=_MAX_FRONTS)] | Literal["auto"], _count_or_auto(_MAX_FRONTS)
    ] = "auto"
    """Processes that answer calls on the port; each reaches all lanes. A client's connection is with one of them.
    `auto`: one for each four cores; one where lanes are threads, or `host` is a Unix domain socket."""
    max_inputs: Waiting = 128
    """Most inputs in one call."""
    max_concurrent_calls: Waiting = 2048
    """Most calls at one time, of all clients together. Further calls are refused with RESOURCE_EXHAUSTED and a delay
    after which clients try again. Several fronts have equal shares."""
    max_streams_per_connection: Annotated[
        Annotated[int, Field(ge=1, le=_MAX_STREAMS)] | Literal["auto"], _count_or_auto(_MAX_STREAMS)
    ] = "auto"
    """Most calls at one time on one connection. A client keeps further calls back until one ends. `auto`: as many as
    sequences are decoded at one time, but at least 100."""
    max_message_bytes: Annotated[int, Field(ge=_MIN_MESSAGE_BYTES, le=_MAX_MESSAGE_BYTES)] = 4 * 1024 * 1024
    """Longest message, in either direction; of a compressed one, also what it holds. A call whose answer is longer ends
    with INVALID_ARGUMENT."""

    drain_delay_s: Seconds = 0.0
    """After SIGTERM: seconds in which the server still accepts calls, so that balancers notice that it is not
    ready."""
    drain_timeout_s: Seconds = 30.0
    """Seconds that running calls then have to end. Calls that still run are cancelled. A call runs until its client has
    taken the whole answer. So a client that does not read, or never sends its request, makes a stop take this long."""

    max_connection_age_s: SecondsFromOneMillisecond = 300.0
    """Clients reconnect after this many seconds, so that balancers spread them over new servers."""
    max_connection_age_grace_s: Seconds = 60.0
    """Seconds that running calls on an old connection have to end."""
    keepalive_time_s: SecondsFromOneMillisecond = 60.0
    """Seconds between two pings of a silent client. The ping notices that the client is gone."""
    keepalive_timeout_s: SecondsFromOneMillisecond = 20.0
    """Seconds that a client has to answer a ping."""
    min_ping_interval_s: SecondsFromOneMillisecond = 5.0
    """Clients may ping this often; the third ping too many ends the connection. gRPC's own default, 300 s, answers
    keepalive pings with GOAWAY."""

    max_connections: Annotated[int, Field(ge=1, le=_MAX_CONNECTIONS)] = 4096
    """Most connections for gRPC at one time. A further one is closed at once. Several fronts have equal shares."""
    max_connection_idle_s: SecondsFromOneMillisecond = 120.0
    """A connection without calls is closed after this many seconds. A client opens another one for its next call."""
    handshake_timeout_s: SecondsFromOneMillisecond = 10.0
    """Seconds that a client has to finish the handshakes of TLS and HTTP/2. Then its connection is closed."""
    max_metadata_bytes: Annotated[int, Field(ge=_MIN_METADATA_BYTES, le=_MAX_METADATA_BYTES)] = 16 * 1024
    """Most bytes of a call's metadata, 32 for each entry included. A call with more ends with RESOURCE_EXHAUSTED."""

    @property
    def http_host(self) -> str:
        """The address for HTTP."""
        if self.metrics_host is not None:
            return self.metrics_host
        return "127.0.0.1" if is_unix(self.host) else self.host

    @model_validator(mode="after")
    def _check_one_port_each(self) -> Self:
        hosts = {self.host, self.http_host}
        same_host = len(hosts) == 1 or hosts & {"0.0.0.0", "::"}  # noqa: S104  compared, not bound
        if self.port and self.port == self.metrics_port and same_host:
            raise ValueError(f"port and metrics_port are both {self.port}: gRPC and HTTP need a port each")
        return self

    @model_validator(mode="after")
    def _check_fronts_have_a_port(self) -> Self:
        if is_unix(self.host) and self.fronts not in {"auto", 1}:
            raise ValueError(f"fronts = {self.fronts}: a Unix domain socket has one front")
        return self


class ModelsSettings(Settings):
    """What to serve."""

    directory: Path = Path("models")
    """Folder of models: NAME/VERSION/bundle.json."""
    versions: Literal["latest", "all"] = "latest"
    """Which versions of a model are served from the start. `latest`: the highest that is sound. `all`: every sound one.
    A call without a version goes to the highest version that is served, unless aliases have shares of such calls."""
    watch: bool = False
    """Whether the folder is watched. A complete bundle of a new version is then loaded and checked. With `latest` it
    takes the place of the lower versions, except those that an alias names. A version that cannot be served changes
    nothing: `dragoman models` says why."""
    allow_changes: bool = False
    """Whether callers may load and unload versions and set aliases while the server runs (`dragoman models`). Where
    callers have to authenticate themselves, they need the scope `admin` too."""


class EngineSettings(Settings):
    """How models run."""

    provider: Literal["cpu", "cuda"] = "cpu"
    """Execution provider of ONNX Runtime."""
    kernels: Literal["auto", "avx512vnni", "avx2", "portable", "none"] = "auto"
    """Kernels of Dragoman's own operators on a CPU. `auto`: the best that the processor has. `none`: ONNX
    Runtime's operators."""
    lanes: ThreadsOrAuto = "auto"
    """Decode loops that run side by side on the same weights. `auto`: one for each core; one on a GPU."""
    threads_per_lane: ThreadsOrAuto = "auto"
    """Threads of one lane. `auto`: the cores shared out evenly."""
    lanes_run_in: Literal["auto", "processes", "threads"] = "auto"
    """`processes`: each lane is a process, so that lanes and calls do not wait for each other. The weights are in
    memory once. `threads`: lanes are threads of the server's process. `auto`: processes on Linux on a CPU with two
    cores or more, where a lane has one thread."""
    slots_per_lane: Rows = 32
    """Sequences that one lane decodes together. It bounds the lane's memory. A lane has room for a sixth more, which
    calls with few running sequences may use."""
    max_waiting: Waiting = 1024
    """Sequences that may wait for a slot. Further ones are refused with RESOURCE_EXHAUSTED. Small calls, clients with
    few waiting sequences and calls of high priority may use up to five eighths more. Calls of low priority leave a
    quarter. Several fronts have equal shares."""
    max_waiting_tokens: WaitingTokens = 0
    """Tokens of inputs that may wait for a slot, beside `max_waiting`. A call that comes while nothing waits is always
    accepted. Calls of high priority may use a quarter more, calls of low priority leave a quarter. Several fronts have
    equal shares. 0: no bound."""
    high_priority_weight: Weight = DEFAULT_WEIGHTS[Priority.HIGH]
    """Share of calls of high priority in the slots that become free, while calls of several priorities wait."""
    normal_priority_weight: Weight = DEFAULT_WEIGHTS[Priority.NORMAL]
    """The same of calls of normal priority, which is that of calls that ask for none."""
    low_priority_weight: Weight = DEFAULT_WEIGHTS[Priority.LOW]
    """The same of calls of low priority."""
    watchdog_s: SecondsFromOne = 20.0
    """A lane that gives no sign of life for so long is stuck. A process is replaced; what ran there fails with
    UNAVAILABLE, which clients repeat. With lanes in threads the server ends with exit code 1. A lane with slow graphs
    has ten times as long as the slowest one took when the model was loaded, if that is more. 20 s leave a repeated call
    two thirds of a client's 60 s."""
    prefix_cache_bytes: Annotated[int, Field(ge=0, le=_MAX_CACHE_BYTES)] = 64 * 1024 * 1024
    """Memory for keys and values of prompts, for prompts that begin the same; for each generation model. 0:
    none."""

    @property
    def priority_weights(self) -> Weights:
        """Shares by priority."""
        return self.high_priority_weight, self.normal_priority_weight, self.low_priority_weight


class LoggingSettings(Settings):
    """What the server logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important level that is logged."""
    format: Literal["console", "json"] = "console"
    """`console` for people, `json` for machines."""
    request_content: bool = False
    """Whether lines of failed calls may repeat what callers sent: the values that were refused, messages of exceptions.
    Else nothing of a request is in the log but its id."""


class ServerSettings(Settings):
    """All settings of the server, one attribute a section of server.toml."""

    server: ListenSettings = ListenSettings()
    """Where to listen, what to accept, how to stop."""
    models: ModelsSettings = ModelsSettings()
    """What to serve."""
    engine: EngineSettings = EngineSettings()
    """How models run."""
    admission: AdmissionSettings = AdmissionSettings()
    """What one client may do."""
    security: SecuritySettings = SecuritySettings()
    """TLS, tokens and certificates of clients."""
    logging: LoggingSettings = LoggingSettings()
    """What is logged."""
    tracing: TracingSettings = TracingSettings()
    """Which calls are traced with OpenTelemetry, and where their spans go."""

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
