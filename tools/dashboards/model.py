"""The dashboard *model*: one model, from its calls down to its graphs."""

from typing import Any

from tools.dashboards.panels import MODELS, Dashboard, failed_share, quantile, quantiles, rate

REUSED = ', source="reused"'


def dashboard() -> Any:
    """Calls, latency, lanes, tokens and versions of the model that is chosen."""
    board = Dashboard(
        "dragoman-model",
        "Dragoman: model",
        "One model, chosen above: its calls, where their time goes, its lanes and its versions.",
        one_model=True,
    )
    _calls(board)
    _time(board)
    _lanes(board)
    _versions(board)
    return board.build()


def _calls(board: Dashboard) -> None:
    board.row("Calls")
    board.number(
        "Requests", "Calls that ended, a second.", "reqps", (rate("dragoman_requests_total", "model"), "")
    )
    board.number(
        "Failed",
        "Share that the server let down. Not 0: by status in the next row.",
        "percentunit",
        (failed_share("model"), ""),
        steps=[(None, "green"), (0.001, "orange"), (0.005, "red")],
    )
    board.number(
        "p99",
        "99 of 100 calls take no longer.",
        "s",
        (quantile(0.99, "dragoman_request_duration_seconds"), ""),
    )
    board.number(
        "First token, p99",
        "The queue and the first step.",
        "s",
        (quantile(0.99, "dragoman_time_to_first_token_seconds"), ""),
    )
    board.number("Output", "Tokens a second.", "short", (rate("dragoman_output_tokens_total", "model"), ""))
    board.number(
        "Tokens a call",
        "Mean of answered calls. Twice as many take twice as long: look at the callers' max_tokens.",
        "short",
        (
            f"{rate('dragoman_output_tokens_total', 'model')} / ({rate('dragoman_requests_total', 'model')} > 0)",
            "",
        ),
        decimals=1,
    )
    board.number(
        "Waiting",
        "Inputs without a slot.",
        "none",
        (f"sum by (model) (dragoman_requests_waiting{{{MODELS}}})", ""),
    )
    board.number(
        "Slots in use",
        "Of all instances.",
        "percentunit",
        (
            f"sum by (model) (dragoman_slots_used{{{MODELS}}}) / sum by (model) (dragoman_slots_total{{{MODELS}}})",
            "",
        ),
        decimals=0,
    )


def _time(board: Dashboard) -> None:
    board.row("Where the time goes")
    board.lines(
        "Request duration",
        "From a call's start to its last byte, by method.",
        "s",
        *quantiles("dragoman_request_duration_seconds", "method"),
        exemplars=True,
    )
    board.lines(
        "Queue duration",
        "The part of it before a slot was free. Most of it: more replicas.",
        "s",
        *quantiles("dragoman_queue_duration_seconds"),
        exemplars=True,
    )
    board.lines(
        "Inference duration",
        "The part of it from the first step to the last.",
        "s",
        *quantiles("dragoman_inference_duration_seconds"),
    )
    board.lines(
        "Status",
        "Calls a second by status; docs/errors.md says what each means.",
        "reqps",
        (rate("dragoman_requests_total", "method, code"), "{{method}} {{code}}"),
        stacked=True,
    )
    board.lines(
        "Refused",
        "Calls a second by reason.",
        "reqps",
        (rate("dragoman_rejected_requests_total", "stage, reason"), "{{stage}} {{reason}}"),
    )
    board.lines(
        "Time per output token",
        "Between two tokens of an answer. It grows with the rows of a step.",
        "s",
        *quantiles("dragoman_time_per_output_token_seconds"),
        exemplars=True,
    )


def _lanes(board: Dashboard) -> None:
    board.row("Lanes")
    board.lines(
        "Step duration",
        "One run of a graph for all its rows.",
        "s",
        *quantiles("dragoman_step_duration_seconds", "graph"),
    )
    board.lines(
        "Time in graphs",
        "Seconds of lanes a second. As many as there are lanes is all there is.",
        "none",
        (rate("dragoman_step_duration_seconds_sum", "graph"), "{{graph}}"),
        stacked=True,
    )
    board.lines(
        "Batch rows",
        "Rows that a step runs together.",
        "none",
        (
            f"{rate('dragoman_batch_rows_sum', 'model')} / ({rate('dragoman_batch_rows_count', 'model')} > 0)",
            "mean",
        ),
        (quantile(0.95, "dragoman_batch_rows"), "p95"),
    )
    board.lines(
        "Slots by instance",
        "Rows in use. One instance far above the others: clients keep their connections.",
        "none",
        (f"sum by (instance) (dragoman_slots_used{{{MODELS}}})", "{{instance}}"),
    )
    board.lines(
        "Prompt tokens",
        "Of started prompts, by whether their keys and values were computed or reused.",
        "short",
        (rate("dragoman_prompt_tokens_total", "source"), "{{source}}"),
        stacked=True,
    )
    board.lines(
        "Prefix reuse",
        "Share of prompt tokens from the prefix cache. Low where prompts begin alike: raise engine.prefix_cache_bytes.",
        "percentunit",
        (
            (
                f"{rate('dragoman_prompt_tokens_total', 'model', more=REUSED)} "
                f"/ ({rate('dragoman_prompt_tokens_total', 'model')} > 0)"
            ),
            "{{model}}",
        ),
    )


def _versions(board: Dashboard) -> None:
    board.row("Versions")
    board.rows_of("Served", "What each instance has loaded.", f"dragoman_model_info{{{MODELS}}}")
    board.lines(
        "Load time",
        "From reading the bundle to its golden examples agreeing. The startup probe has to wait for so long.",
        "s",
        (f"dragoman_model_load_duration_seconds{{{MODELS}}}", "{{instance}}"),
        span=12,
    )
