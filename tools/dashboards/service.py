"""The dashboard *service*: is all well, and if not, by which cause?"""

from typing import Any

from tools.dashboards import service_instances
from tools.dashboards.panels import (
    INSTANCES,
    MODELS,
    SERIES,
    Dashboard,
    failed_share,
    quantile,
    quantiles,
    rate,
)

GREEN_RED = [(None, "green"), (1.0, "red")]
FULL = [(None, "green"), (0.8, "orange"), (0.95, "red")]


def dashboard() -> Any:
    """Rows by cause below a row of what matters."""
    board = Dashboard(
        "dragoman-service",
        "Dragoman: service",
        "Is the service well? First row: what callers notice. Rows below: by cause. docs/runbook.md has what to do.",
    )
    _overview(board)
    _traffic(board)
    _queue(board)
    _batch(board)
    _tokens(board)
    service_instances.cpu(board)
    service_instances.memory(board)
    service_instances.versions(board)
    service_instances.stops_and_credentials(board)
    return board.build()


def _overview(board: Dashboard) -> None:
    board.row("Overview")
    board.number(
        "Firing alerts",
        "Alerts of Dragoman that fire now. Not 0: find each by its name in docs/runbook.md.",
        "none",
        (
            'count(ALERTS{alertname=~"Dragoman.*", alertstate="firing", namespace=~"$namespace"}) or vector(0)',
            "",
        ),
        steps=GREEN_RED,
    )
    board.number(
        "Error budget left",
        "Of what may fail in three days; of the worst model. Below a quarter: no risky rollout. Below 0: the objective "
        "is broken; the row Traffic says by which status.",
        "percentunit",
        (f"min(namespace_job_model:dragoman_error_budget_left:ratio{{{SERIES}}})", ""),
        steps=[(None, "red"), (0.0, "orange"), (0.25, "green")],
        decimals=1,
    )
    board.number(
        "Ready and desired",
        "Instances that serve, and how many should be there (all that are scraped, where kube-state-metrics is not). "
        "Fewer: kubectl get pods, and the panel Phases.",
        "none",
        (f'sum(dragoman_phase{{{INSTANCES}, phase="serving"}})', "ready"),
        (
            (
                'sum(kube_deployment_spec_replicas{namespace=~"$namespace", deployment=~".*dragoman.*"}) '
                f"or count(up{{{INSTANCES}}})"
            ),
            "desired",
        ),
        span=4,
    )
    board.number(
        "p99 and its objective",
        "99 of 100 calls of Translate take no longer; of the slowest model. Above: the rows Queue and Batch say why.",
        "s",
        (
            (
                "max(namespace_job_model_method:dragoman_request_duration_seconds:p99_rate5m"
                f'{{{SERIES}, model=~"$model", method="Translate"}})'
            ),
            "p99",
        ),
        ("dragoman:objective_latency:seconds", "objective"),
        span=4,
    )
    board.number(
        "Waiting",
        "Inputs without a slot, and how long the oldest of them waits. Seconds: more replicas.",
        "none",
        (f"sum(dragoman_requests_waiting{{{MODELS}}})", ""),
        steps=[(None, "green"), (10.0, "orange"), (100.0, "red")],
    )
    board.number(
        "Slots in use",
        "Of the fullest model, over all instances. All the time near 100 % with inputs waiting: more replicas.",
        "percentunit",
        (f'max(namespace_job_model:dragoman_slots_used:ratio{{{SERIES}, model=~"$model"}})', ""),
        steps=FULL,
        decimals=0,
    )
    board.number(
        "Worst pod",
        "The instance with the highest p99. Far above the others: choose it in the variable instance, and look at its "
        "CPU and its node.",
        "s",
        (f"topk(1, {quantile(0.99, 'dragoman_request_duration_seconds', 'instance')})", "{{instance}}"),
        span=4,
    )


def _traffic(board: Dashboard) -> None:
    board.row("Traffic")
    board.lines(
        "Requests by method",
        "Calls that ended, a second. Calls that reached gRPC and were not taken up wait there, or gRPC dropped them: "
        "then more replicas.",
        "reqps",
        (rate("dragoman_requests_total", "model, method"), "{{model}} {{method}}"),
        (f"sum(rate(dragoman_calls_started_total{{{INSTANCES}}}[$__rate_interval]))", "reached gRPC"),
        (f"sum(rate(dragoman_calls_taken_up_total{{{INSTANCES}}}[$__rate_interval]))", "taken up"),
        span=6,
    )
    board.lines(
        "Requests by status",
        "A status that grows is the first thing to look at: docs/errors.md says what each means.",
        "reqps",
        (rate("dragoman_requests_total", "code"), "{{code}}"),
        span=6,
        stacked=True,
    )
    board.lines(
        "Failed requests",
        "Share that the server let down: internal errors, missed deadlines, refusals, unavailability. Above 0.5 % for "
        "long the objective breaks.",
        "percentunit",
        (failed_share("model"), "{{model}}"),
        span=6,
    )
    board.lines(
        "Refused requests",
        "By reason. queue_full, no_time, too_many_calls: more replicas. client_calls, client_tokens: one client's "
        "limit. unauthenticated, not_permitted, invalid: the callers.",
        "reqps",
        (rate("dragoman_rejected_requests_total", "model, stage, reason"), "{{model}} {{stage}} {{reason}}"),
        span=6,
    )
    board.lines(
        "Request duration",
        "From a call's start to its last byte. A stream lasts as long as its text.",
        "s",
        *quantiles("dragoman_request_duration_seconds", "method"),
        exemplars=True,
    )
    board.lines(
        "Mean duration by status",
        "Failures that are slower than answers wait for something; much faster ones are refused.",
        "s",
        (
            f"{rate('dragoman_request_seconds_total', 'code')} / ({rate('dragoman_requests_total', 'code')} > 0)",
            "{{code}}",
        ),
    )
    board.lines(
        "Time since the last call",
        "Of a model. One that nobody calls can be unloaded.",
        "s",
        (f"time() - max by (model) (dragoman_last_request_timestamp_seconds{{{MODELS}}})", "{{model}}"),
    )
    board.heat(
        "Request duration, all calls",
        "Where the calls lie; two bands are two kinds of request.",
        "s",
        "dragoman_request_duration_seconds",
    )


def _queue(board: Dashboard) -> None:
    board.row("Queue")
    board.lines(
        "Running and waiting",
        "Inputs with a slot, and inputs in the queue. A queue beside free slots: low priorities, or a lane that hangs.",
        "none",
        (f"sum by (model) (dragoman_requests_running{{{MODELS}}})", "running {{model}}"),
        (f"sum by (model) (dragoman_requests_waiting{{{MODELS}}})", "waiting {{model}}"),
        span=6,
    )
    board.lines(
        "Oldest waiting",
        "How long the input has waited that waits longest. Seconds that climb: nothing goes on, or too much comes.",
        "s",
        (f"max by (model) (dragoman_oldest_waiting_seconds{{{MODELS}}})", "{{model}}"),
        span=6,
    )
    board.lines(
        "Queue duration",
        "How long inputs waited for a slot. More than a step: more replicas.",
        "s",
        *quantiles("dragoman_queue_duration_seconds"),
        span=6,
        exemplars=True,
    )
    board.lines(
        "Utilization of instances",
        "(running + waiting) / slots, what the autoscaler follows: it aims at 80 %. One far above the others: clients "
        "keep their connections.",
        "percentunit",
        (f"dragoman:utilization:ratio{{{INSTANCES}}}", "{{instance}}"),
        (f"namespace_job:dragoman_utilization:ratio{{{SERIES}}}", "mean"),
        span=6,
    )


def _batch(board: Dashboard) -> None:
    board.row("Batch")
    board.lines(
        "Slots",
        "Rows in use, and all there are. At the ceiling new requests wait.",
        "none",
        (f"sum by (model) (dragoman_slots_used{{{MODELS}}})", "used {{model}}"),
        (f"sum by (model) (dragoman_slots_total{{{MODELS}}})", "total {{model}}"),
        span=6,
    )
    board.lines(
        "Batch rows",
        "Rows that a step runs together: more rows, more tokens for the same step.",
        "none",
        (
            f"{rate('dragoman_batch_rows_sum', 'model')} / ({rate('dragoman_batch_rows_count', 'model')} > 0)",
            "mean {{model}}",
        ),
        (quantile(0.95, "dragoman_batch_rows"), "p95 {{model}}"),
        span=6,
    )
    board.lines(
        "Step duration, p99",
        "One run of a graph for all its rows. Slower with the same rows: throttling, or a neighbour on the node.",
        "s",
        (quantile(0.99, "dragoman_step_duration_seconds", "model, graph"), "{{model}} {{graph}}"),
        span=6,
    )
    board.lines(
        "Failed steps",
        "Each fails the calls that took part. Not 0: the log event step_failed has the error.",
        "ops",
        (rate("dragoman_failed_steps_total", "instance, model"), "{{model}} {{instance}}"),
        span=6,
    )


def _tokens(board: Dashboard) -> None:
    board.row("Tokens")
    board.lines(
        "Tokens",
        "Read and produced, a second. Unknown: characters that the vocabulary lacks, perhaps of another language.",
        "short",
        (rate("dragoman_input_tokens_total", "model"), "input {{model}}"),
        (rate("dragoman_unknown_input_tokens_total", "model"), "unknown {{model}}"),
        (rate("dragoman_output_tokens_total", "model"), "output {{model}}"),
        span=6,
    )
    board.lines(
        "Time to first token",
        "The queue and the first step.",
        "s",
        *quantiles("dragoman_time_to_first_token_seconds"),
        span=6,
        exemplars=True,
    )
    board.lines(
        "Time per output token",
        "Between two tokens of an answer. It grows with the rows of a step.",
        "s",
        *quantiles("dragoman_time_per_output_token_seconds"),
        span=6,
        exemplars=True,
    )
    board.lines(
        "Time beside the lanes",
        "Of fronts, a second: checking and tokenizing texts, making answers. Near 1: server.fronts.",
        "s",
        (rate("dragoman_preparation_seconds_total", "model"), "texts {{model}}"),
        (rate("dragoman_answer_seconds_total", "model"), "answers {{model}}"),
        span=6,
    )
