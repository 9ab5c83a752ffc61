"""Rows of the dashboard *service* about what instances take, what they run, and how they end."""

from tools.dashboards.panels import INSTANCES, MODELS, Dashboard, rate

__all__ = ["cpu", "memory", "stops_and_credentials", "versions"]


def cpu(board: Dashboard) -> None:
    """Cores that are used, and those that the limit kept away."""
    board.row("CPU and throttling")
    board.lines(
        "CPU",
        "Cores that all processes use, and the limit. At the limit: more replicas, or a higher limit.",
        "none",
        (rate("dragoman_process_cpu_seconds_total", "instance", of=INSTANCES), "used {{instance}}"),
        (f"dragoman_cpu_limit_cores{{{INSTANCES}}}", "limit {{instance}}"),
        (f"dragoman_threads{{{INSTANCES}}}", "threads {{instance}}"),
        span=6,
    )
    board.lines(
        "Throttled",
        "Seconds without a core a second, as the CPU limit was used up. Not 0: raise the limit, or run fewer lanes.",
        "s",
        (rate("dragoman_cpu_throttled_seconds_total", "instance", of=INSTANCES), "{{instance}}"),
        span=6,
    )
    board.lines(
        "CPU of each process",
        "Fronts answer calls, lanes compute. A front at one core is the limit of its instance: server.fronts.",
        "none",
        (
            rate("dragoman_process_cpu_seconds_total", "instance, process", of=INSTANCES),
            "{{process}} {{instance}}",
        ),
        span=6,
    )
    board.lines(
        "Open files of each process",
        "Connections, and sockets between processes. A line that only climbs is a leak.",
        "none",
        (f"dragoman_process_open_fds{{{INSTANCES}}}", "{{process}} {{instance}}"),
        span=6,
    )


def memory(board: Dashboard) -> None:
    """Memory of instances and processes against the limit."""
    board.row("Memory against its limit")
    board.lines(
        "Memory of its limit",
        "Of all processes, shared pages counted once. Flat from the start on: what climbs is a leak. Above 90 %: raise "
        "the limit.",
        "percentunit",
        (
            (
                f"sum by (instance) (dragoman_process_pss_bytes{{{INSTANCES}}}) "
                f"/ sum by (instance) (dragoman_memory_limit_bytes{{{INSTANCES}}})"
            ),
            "{{instance}}",
        ),
    )
    board.lines(
        "Memory of each process",
        "The one that climbs is the one to report.",
        "bytes",
        (f"dragoman_process_pss_bytes{{{INSTANCES}}}", "{{process}} {{instance}}"),
        (f"dragoman_memory_limit_bytes{{{INSTANCES}}}", "limit {{instance}}"),
    )
    board.lines(
        "Prefix cache",
        "Keys and values kept for prompts that begin the same; engine.prefix_cache_bytes bounds it.",
        "bytes",
        (f"sum by (model) (dragoman_prefix_cache_bytes{{{MODELS}}})", "{{model}}"),
    )


def versions(board: Dashboard) -> None:
    """Phases, releases, and the states of models' versions."""
    board.row("Versions")
    board.lines(
        "Phases",
        "Instances by what they do with calls. failing, stuck: docs/runbook.md, DragomanInstanceNotReady.",
        "none",
        (f"sum by (phase) (dragoman_phase{{{INSTANCES}}})", "{{phase}}"),
        span=6,
        stacked=True,
    )
    board.lines(
        "Releases",
        "Instances by release. Two for longer than a rollout takes: finish it or undo it.",
        "none",
        (
            f"count by (version, onnxruntime) (dragoman_build_info{{{INSTANCES}}})",
            "{{version}} on {{onnxruntime}}",
        ),
        span=6,
        stacked=True,
    )
    board.lines(
        "States of versions",
        "Of models. failed: the log event not_loaded and `dragoman models` say why.",
        "none",
        (
            f"count by (model, version, state) (dragoman_model_version_state{{{MODELS}}})",
            "{{model}}/{{version}} {{state}}",
        ),
        span=6,
    )
    board.lines(
        "Models not loaded",
        "What lies in the models folder and is not served, by reason. Copy a broken version anew, under a new number.",
        "none",
        (f"max by (instance, reason) (dragoman_models_not_loaded{{{INSTANCES}}})", "{{instance}} {{reason}}"),
        span=6,
    )


def stops_and_credentials(board: Dashboard) -> None:
    """What else an operator has to know: stops, certificates, spans, log lines."""
    board.row("Stops, credentials, traces, log")
    board.lines(
        "Age of each process",
        "A process that died was replaced by one whose age begins at zero; the log says why it died.",
        "s",
        (f"time() - dragoman_process_start_time_seconds{{{INSTANCES}}}", "{{process}} {{instance}}"),
        span=6,
    )
    board.lines(
        "Drains",
        "Calls that stops cut off, and the seconds left to servers that drain. Calls cut off: raise "
        "server.drain_timeout_s.",
        "none",
        (f"dragoman_drain_cancelled_calls_total{{{INSTANCES}}}", "cut off {{instance}}"),
        (
            f"clamp_min(dragoman_drain_deadline_timestamp_seconds{{{INSTANCES}}} - time(), 0)",
            "seconds left {{instance}}",
        ),
        span=6,
    )
    board.lines(
        "Time until the certificate ends",
        "Of the certificate that new connections get to see. Less than seven days: renew it.",
        "s",
        (f"dragoman_certificate_expiry_timestamp_seconds{{{INSTANCES}}} - time()", "{{instance}}"),
        span=6,
    )
    board.lines(
        "Credentials read again",
        "Changed files of certificates and tokens. failed: what was before is in use; see credentials_not_reloaded.",
        "short",
        (
            (
                "sum by (instance, kind, result) "
                f"(increase(dragoman_credential_reloads_total{{{INSTANCES}}}[$__rate_interval]))"
            ),
            "{{kind}} {{result}} {{instance}}",
        ),
        span=6,
    )
    board.lines(
        "Spans of traced calls",
        "Taken by the collector, not taken, or dropped as the queue before it was full. None of it costs a call.",
        "short",
        (rate("dragoman_trace_spans_total", "instance, result", of=INSTANCES), "{{result}} {{instance}}"),
        span=12,
    )
    board.lines(
        "Log lines lost",
        "Standard error did not take them. Not 0: the reader of the log is too slow, or logging.level is too low.",
        "short",
        (rate("dragoman_log_lines_dropped_total", "instance", of=INSTANCES), "{{instance}}"),
        span=12,
    )
