"""inference.GRPCInferenceService: the Open Inference Protocol v2 with Triton's extensions.

https://github.com/kserve/open-inference-protocol, https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import grpc.aio

from dragoman.inference import grpc_service_pb2 as pb
from dragoman.server.errors import InvalidRequest
from dragoman.server.fronts.grpc.open_inference import models
from dragoman.server.fronts.grpc.open_inference.outputs import answer_tensors, score_tensors
from dragoman.server.fronts.grpc.open_inference.repository import (
    repository_index,
    version_to_load,
    version_to_unload,
)
from dragoman.server.fronts.grpc.open_inference.requests import Inference, field_name, read_request
from dragoman.server.fronts.grpc.open_inference.responses import StreamedResponses, response_to
from dragoman.server.fronts.grpc.open_inference.statistics import statistics_message
from dragoman.server.fronts.grpc.open_inference.tensors import Tensor
from dragoman.server.fronts.grpc.sticky import sticky_key
from dragoman.server.lifecycle import Lifecycle
from dragoman.server.models.changes import ModelChanges
from dragoman.server.operations.statistics import ModelStatistics
from dragoman.server.requests.calls import Answer, Call, Delta, ScoringCall
from dragoman.server.requests.runtime import Runtime

__all__ = ["InferenceServicer", "ReadStatistics"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
ReadStatistics: TypeAlias = Callable[[], Awaitable[Mapping[str, ModelStatistics]]]


class InferenceServicer:
    """Models of both tasks. The methods for shared memory, traces and logs are not there."""

    def __init__(
        self,
        runtime: Runtime,
        lifecycle: Lifecycle,
        changes: ModelChanges,
        read_statistics: ReadStatistics,
        *,
        max_inputs: int,
    ) -> None:
        """`read_statistics` returns the figures of each model, of the server as a whole."""
        self._runtime = runtime
        self._lifecycle = lifecycle
        self._changes = changes
        self._read_statistics = read_statistics
        self._max_inputs = max_inputs

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Whether the server may go on, as /healthz says."""
        return pb.ServerLiveResponse(live=self._lifecycle.is_alive)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether balancers should send calls here, as /readyz says."""
        return pb.ServerReadyResponse(ready=self._lifecycle.is_ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether the model is served; false for a name that is unknown."""
        is_served = models.is_served(self._runtime.registry, request.name, request.version)
        return pb.ModelReadyResponse(ready=self._lifecycle.accepts_calls and is_served)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """Name, version and the extensions of the protocol."""
        return models.server_metadata()

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """Versions, inputs and outputs of a model."""
        return models.model_metadata(self._runtime.registry, request.name, request.version)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """The same in Triton's terms, and what the bundle says of itself."""
        lease = self._runtime.registry.lease(request.name, request.version)
        return pb.ModelConfigResponse(config=models.model_config(lease.model, self._max_inputs))

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Counts and times since the server's start, of one model or of all."""
        registry = self._runtime.registry
        served = registry.models
        if request.name:
            registry.lease(request.name, request.version)  # or there is no such model
            served = [model for model in served if model.name == request.name]
        return statistics_message(served, await self._read_statistics())

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """The state of every version, and why it is not served."""
        return repository_index(request, self._runtime.registry)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Serve a version, as LoadModel of dragoman.v1 does."""
        await self._changes.load(request.model_name, version_to_load(request))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a version, as UnloadModel of dragoman.v1 does."""
        await self._changes.unload(request.model_name, version_to_unload(request))
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Answer all texts and send the answers when all are done."""
        inference = self._read(request, context, is_streamed=False)
        version, tensors = await self._whole(inference)
        return response_to(request, inference, version, tensors)

    async def ModelStreamInfer(self, request: pb.ModelInferRequest, call: Any) -> None:
        """Answer one request of a stream: send text as it is produced, and the rest with the last of it."""
        inference = self._read(request, call, is_streamed=True)

        async def send(response: pb.ModelInferResponse) -> None:
            await call.write(pb.ModelStreamInferResponse(infer_response=response))

        max_bytes = self._runtime.max_message_bytes
        if isinstance(inference.call, ScoringCall):
            responses = StreamedResponses(request, inference, 1, max_bytes, send)
            version, tensors = await self._whole(inference)
            await responses.send(version, 0, tensors, ends_part=True)
        else:
            responses = StreamedResponses(request, inference, len(inference.call.inputs), max_bytes, send)
            await self._follow(inference, inference.call, responses)

    def _read(self, request: pb.ModelInferRequest, context: Any, *, is_streamed: bool) -> Inference:
        # The version is chosen here alone: nothing is awaited before the runtime takes its lease on it.
        lease = self._runtime.registry.lease(request.model_name, request.model_version, sticky_key())
        return read_request(
            request,
            lease.model.version,
            lease.model.manifest.task,
            max_inputs=self._max_inputs,
            remaining_s=context.time_remaining(),
            is_streamed=is_streamed,
        )

    async def _whole(self, inference: Inference) -> tuple[str, Sequence[Tensor]]:
        """Returns the version that answered, and the outputs for all texts."""
        call = inference.call
        with _renamed_fields():
            if isinstance(call, Call):
                answers = await self._runtime.answer(call)
                return answers[0].version, await self._tensors(inference, answers)
            scores = await self._runtime.score(call)
            shape, max_bytes = inference.shape(len(scores)), self._runtime.max_message_bytes
            return scores[0].version, await score_tensors(scores, inference.wanted, shape, max_bytes)

    async def _follow(self, inference: Inference, call: Call, responses: StreamedResponses) -> None:
        """Send text as it comes. With several hypotheses it is sent as a whole."""
        sends_pieces = "text" in inference.wanted.names and inference.num_hypotheses == 1

        async def emit(delta: Delta) -> None:
            piece = Tensor("text", "BYTES", inference.shape(1), [delta.text])
            if delta.answer is not None:
                tensors = await self._tensors(inference, [delta.answer])
                if sends_pieces:
                    tensors = [piece if tensor.name == "text" else tensor for tensor in tensors]
                await responses.send(delta.answer.version, delta.index, tensors, ends_part=True)
            elif sends_pieces:
                await responses.send(call.version, delta.index, [piece], ends_part=False)

        with _renamed_fields():
            await self._runtime.stream(call, emit)

    async def _tensors(self, inference: Inference, answers: Sequence[Answer]) -> list[Tensor]:
        shape, max_bytes = inference.shape(len(answers)), self._runtime.max_message_bytes
        return await answer_tensors(answers, inference.wanted, shape, max_bytes)


@contextlib.contextmanager
def _renamed_fields() -> Iterator[None]:
    """Put the protocol's names to the fields of a refusal."""
    try:
        yield
    except InvalidRequest as error:
        error.rename_fields(field_name)
        raise
