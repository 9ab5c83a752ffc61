"""Triton's extension for statistics, from the counts that /metrics shows."""

from collections.abc import Mapping, Sequence

from dragoman.inference.grpc_service_pb2 import ModelStatisticsResponse, StatisticDuration
from dragoman.server.models.served_model import ServedModel
from dragoman.server.operations.statistics import Durations, ModelStatistics

__all__ = ["statistics_message"]


def statistics_message(
    models: Sequence[ServedModel], statistics: Mapping[str, ModelStatistics]
) -> ModelStatisticsResponse:
    """Returns an entry for each model of `models`.

    Counts are of a model: with several versions of it the entry names none. `success` and `fail` count calls, the
    others inputs. A batch is a run of a graph for rows of many inputs, whose number differs from run to run: there are
    no figures by batch size.
    """
    response = ModelStatisticsResponse()
    versions: dict[str, list[str]] = {}
    for model in models:
        versions.setdefault(model.name, []).append(model.version)
    for name, of_model in versions.items():
        figures = statistics.get(name, ModelStatistics())
        entry = response.model_stats.add(
            name=name,
            version=of_model[0] if len(of_model) == 1 else "",
            last_inference=round(figures.last_request_s * 1e3),
            inference_count=round(figures.inferred.count),
            execution_count=round(figures.num_runs),
        )
        stats, num_inputs = entry.inference_stats, figures.inferred.count
        for message, durations in (
            (stats.success, figures.succeeded),
            (stats.fail, figures.failed),
            (stats.queue, figures.queued),
            (stats.compute_input, Durations(num_inputs, figures.preparing_s)),
            (stats.compute_infer, figures.inferred),
            (stats.compute_output, Durations(num_inputs, figures.making_s)),
        ):
            _fill(message, durations)
    return response


def _fill(message: StatisticDuration, durations: Durations) -> None:
    message.count = round(durations.count)
    message.ns = round(durations.seconds * 1e9)
