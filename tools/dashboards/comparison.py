"""The dashboard *compare versions*: is the new one as good as the one before?"""

from typing import Any

from tools.dashboards.panels import INSTANCES, MODELS, Dashboard, failed_share, rate

BY_VERSION = "model, version"
RELEASE = f"on (namespace, job, instance) group_left (version) dragoman_build_info{{{INSTANCES}}}"
"""Gives the series of an instance the release that it runs."""
NAME = "{{model}}/{{version}}"


def dashboard() -> Any:
    """Versions of models by what their calls became; releases by what their instances do."""
    board = Dashboard(
        "dragoman-compare-versions",
        "Dragoman: compare versions",
        "Versions of a model (a canary, a share of the traffic) and releases of the server, side by side.",
    )
    _models(board)
    _releases(board)
    return board.build()


def _models(board: Dashboard) -> None:
    calls = rate("dragoman_version_requests_total", BY_VERSION)
    board.row("Versions of models")
    board.lines(
        "Calls",
        "A second, by the version that took them.",
        "reqps",
        (calls, NAME),
        span=6,
        stacked=True,
    )
    board.lines(
        "Share of the traffic",
        "Not what was set: clients name a version, or the shares were not taken up (`dragoman models`).",
        "percentunit",
        (
            f"{calls} / on (model) group_left () ({rate('dragoman_version_requests_total', 'model')} > 0)",
            NAME,
        ),
        span=6,
        stacked=True,
    )
    board.lines(
        "Failed calls",
        "Share that the server let down. The new version above the old one: set the share back.",
        "percentunit",
        (failed_share(BY_VERSION, metric="dragoman_version_requests_total"), NAME),
        span=6,
    )
    board.lines(
        "Calls by status",
        "OUT_OF_RANGE or INVALID_ARGUMENT of the new version alone: its limits are narrower.",
        "reqps",
        (rate("dragoman_version_requests_total", "model, version, code"), f"{NAME} {{{{code}}}}"),
        span=6,
    )
    board.rows_of("Served", "Which instance has which version.", f"dragoman_model_info{{{MODELS}}}")
    board.lines(
        "States",
        "Instances by the state of each version. failed: `dragoman models` says why.",
        "none",
        (
            f"count by (model, version, state) (dragoman_model_version_state{{{MODELS}}})",
            f"{NAME} {{{{state}}}}",
        ),
        span=12,
    )


def _releases(board: Dashboard) -> None:
    board.row("Releases of the server, for the models that are chosen")
    board.lines(
        "Request duration, p99",
        "By the release of the instance. A pod that has just started is slow for its first calls.",
        "s",
        (_quantile(0.99, "dragoman_request_duration_seconds"), "{{version}}"),
        (_quantile(0.5, "dragoman_request_duration_seconds"), "p50 {{version}}"),
    )
    board.lines(
        "Step duration, p99",
        "By release and graph. Slower on the same nodes: do not go on with the rollout.",
        "s",
        (_quantile(0.99, "dragoman_step_duration_seconds", "version, graph"), "{{version}} {{graph}}"),
    )
    board.lines(
        "Failed calls",
        "Share that instances of the release let down.",
        "percentunit",
        (f"avg by (version) ({failed_share('namespace, job, instance')} * {RELEASE})", "{{version}}"),
    )
    board.lines(
        "CPU for a call",
        "Seconds of CPU of all processes for each call, by release.",
        "s",
        (
            (
                f"sum by (version) ({_rate('dragoman_process_cpu_seconds_total', INSTANCES)} * {RELEASE}) "
                f"/ (sum by (version) ({_rate('dragoman_requests_total', INSTANCES)} * {RELEASE}) > 0)"
            ),
            "{{version}}",
        ),
    )
    board.lines(
        "Memory of an instance",
        "Of all processes, shared pages counted once.",
        "bytes",
        (
            (
                "avg by (version) (sum by (namespace, job, instance) "
                f"(dragoman_process_pss_bytes{{{INSTANCES}}}) * {RELEASE})"
            ),
            "{{version}}",
        ),
    )
    board.lines(
        "Instances",
        "How far the rollout is.",
        "none",
        (
            f"count by (version, onnxruntime) (dragoman_build_info{{{INSTANCES}}})",
            "{{version}} on {{onnxruntime}}",
        ),
        stacked=True,
    )


def _rate(metric: str, of: str) -> str:
    return rate(metric, "namespace, job, instance", of=of)


def _quantile(share: float, metric: str, by: str = "version") -> str:
    labels = ", ".join(["namespace, job, instance, le", *by.split(", ")[1:]])
    buckets = f"{rate(f'{metric}_bucket', labels)} * {RELEASE}"
    return f"histogram_quantile({share:g}, sum by (le, {by}) ({buckets}))"
