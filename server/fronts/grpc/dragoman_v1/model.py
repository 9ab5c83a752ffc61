"""dragoman.v1.ModelService."""

import grpc.aio

from dragoman.server.errors import NOT_LOADED_REASONS
from dragoman.server.models.registry import Registry
from dragoman.server.models.served_model import ServedModel
from dragoman.v1 import model_pb2, model_pb2_grpc

__all__ = ["ModelServicer", "model_message"]

ListContext = grpc.aio.ServicerContext[model_pb2.ListModelsRequest, model_pb2.ListModelsResponse]
GetContext = grpc.aio.ServicerContext[model_pb2.GetModelRequest, model_pb2.Model]

_TASKS = {"translation": model_pb2.TASK_TRANSLATION, "generation": model_pb2.TASK_GENERATION}

_REASONS = {
    reason: model_pb2.NotLoadedReason.Value(f"NOT_LOADED_REASON_{reason.upper()}")
    for reason in NOT_LOADED_REASONS
}


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Answers which models are served, and which are not."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: ListContext
    ) -> model_pb2.ListModelsResponse:
        """All models, sorted by name, and what could not be loaded."""
        return model_pb2.ListModelsResponse(
            models=[model_message(model) for model in self._registry.models],
            not_loaded=[
                model_pb2.NotLoadedModel(
                    name=each.name,
                    version=each.version,
                    reason=_REASONS[each.reason],
                    description=each.description,
                )
                for each in self._registry.not_loaded
            ],
        )

    async def GetModel(self, request: model_pb2.GetModelRequest, context: GetContext) -> model_pb2.Model:
        """One model."""
        with self._registry.lease(request.model, request.version) as lease:
            return model_message(lease.model)


def model_message(model: ServedModel) -> model_pb2.Model:
    """Returns what callers see of a model."""
    manifest = model.manifest
    message = model_pb2.Model(
        name=model.name,
        version=model.version,
        task=_TASKS[manifest.task],
        precision=manifest.precision,
        provider=model.provider,
        num_parameters=manifest.dimensions.num_parameters,
        max_input_tokens=model.max_input_tokens,
        max_output_tokens=manifest.limits.max_output_tokens,
        quality=[
            model_pb2.Quality(
                metric=figure.metric, value=figure.value, num_examples=figure.num_examples, data=figure.data
            )
            for figure in manifest.quality
        ],
    )
    message.provenance.update(manifest.provenance)
    return message
