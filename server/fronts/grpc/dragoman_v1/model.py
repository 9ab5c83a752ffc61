"""dragoman.v1.ModelService."""

import grpc.aio

from dragoman.server.errors import NOT_LOADED_REASONS
from dragoman.server.models.catalog import Catalog, VersionState
from dragoman.server.models.changes import ModelChanges
from dragoman.server.models.registry import Registry
from dragoman.server.models.served_model import ServedModel
from dragoman.v1 import model_pb2, model_pb2_grpc

__all__ = ["ModelServicer", "model_message"]

ListContext = grpc.aio.ServicerContext[model_pb2.ListModelsRequest, model_pb2.ListModelsResponse]
GetContext = grpc.aio.ServicerContext[model_pb2.GetModelRequest, model_pb2.Model]
LoadContext = grpc.aio.ServicerContext[model_pb2.LoadModelRequest, model_pb2.LoadModelResponse]
UnloadContext = grpc.aio.ServicerContext[model_pb2.UnloadModelRequest, model_pb2.UnloadModelResponse]
SetAliasContext = grpc.aio.ServicerContext[model_pb2.SetAliasRequest, model_pb2.SetAliasResponse]
DeleteAliasContext = grpc.aio.ServicerContext[model_pb2.DeleteAliasRequest, model_pb2.DeleteAliasResponse]

_TASKS = {"translation": model_pb2.TASK_TRANSLATION, "generation": model_pb2.TASK_GENERATION}

_REASONS = {
    reason: model_pb2.NotLoadedReason.Value(f"NOT_LOADED_REASON_{reason.upper()}")
    for reason in NOT_LOADED_REASONS
}
_STATES = {
    state: model_pb2.VersionState.Value(f"VERSION_STATE_{state.value.upper()}") for state in VersionState
}


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Answers which models are served and which are not, and hands on what shall change."""

    def __init__(self, registry: Registry, changes: ModelChanges) -> None:
        self._registry = registry
        self._changes = changes

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: ListContext
    ) -> model_pb2.ListModelsResponse:
        """All models, sorted by name, what could not be loaded, and the state of every version."""
        catalog = self._registry.catalog
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
            versions=_versions(catalog),
            aliases=_aliases(catalog),
        )

    async def GetModel(self, request: model_pb2.GetModelRequest, context: GetContext) -> model_pb2.Model:
        """One model."""
        with self._registry.lease(request.model, request.version) as lease:
            return model_message(lease.model)

    async def LoadModel(
        self, request: model_pb2.LoadModelRequest, context: LoadContext
    ) -> model_pb2.LoadModelResponse:
        """Serve a version."""
        await self._changes.load(request.model, request.version)
        return model_pb2.LoadModelResponse()

    async def UnloadModel(
        self, request: model_pb2.UnloadModelRequest, context: UnloadContext
    ) -> model_pb2.UnloadModelResponse:
        """Unload a version."""
        await self._changes.unload(request.model, request.version)
        return model_pb2.UnloadModelResponse()

    async def SetAlias(
        self, request: model_pb2.SetAliasRequest, context: SetAliasContext
    ) -> model_pb2.SetAliasResponse:
        """Let an alias name a version."""
        alias = request.alias
        await self._changes.set_alias(alias.model, alias.alias, alias.version, alias.traffic_percent)
        return model_pb2.SetAliasResponse()

    async def DeleteAlias(
        self, request: model_pb2.DeleteAliasRequest, context: DeleteAliasContext
    ) -> model_pb2.DeleteAliasResponse:
        """Let an alias name nothing any more."""
        await self._changes.delete_alias(request.model, request.alias)
        return model_pb2.DeleteAliasResponse()


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


def _versions(catalog: Catalog) -> list[model_pb2.ModelVersion]:
    """Folders that are no version are told as not loaded alone."""
    return [
        model_pb2.ModelVersion(
            model=each.name, version=each.version, state=_STATES[each.state], description=each.description
        )
        for each in catalog.versions
        if each.version
    ]


def _aliases(catalog: Catalog) -> list[model_pb2.ModelAlias]:
    return [
        model_pb2.ModelAlias(model=model, alias=alias, version=to.version, traffic_percent=to.traffic_percent)
        for model, aliases in sorted(catalog.aliases.items())
        for alias, to in sorted(aliases.items())
    ]
