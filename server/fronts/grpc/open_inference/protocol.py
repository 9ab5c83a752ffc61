"""The facts that the front needs of inference.GRPCInferenceService, and how the service is registered."""

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from dragoman.inference import POOL
from dragoman.inference.grpc_service_pb2 import (
    DESCRIPTOR,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from dragoman.server.fronts.grpc.chains import InterceptedServer, Protocol
from dragoman.server.fronts.grpc.interceptors import Handler
from dragoman.server.fronts.grpc.open_inference.requests import MAX_ID_CHARACTERS
from dragoman.server.fronts.grpc.open_inference.responses import FINAL_RESPONSE
from dragoman.server.requests.failures import Failure

__all__ = ["DECODING_METHODS", "PROTOCOL", "SERVICE_NAME", "add_service"]

_SERVICE = DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICE_NAME: str = _SERVICE.full_name

DECODING_METHODS = ("ModelInfer", "ModelStreamInfer")
"""The methods that decode, for models of either task."""


def add_service(servicer: object, server: InterceptedServer) -> None:
    """Register the methods that `servicer` has. What it lacks, gRPC answers with UNIMPLEMENTED."""
    handlers: Mapping[str, Handler] = {
        method.name: _handler(method, getattr(servicer, method.name))
        for method in _SERVICE.methods
        if hasattr(servicer, method.name)
    }
    server.add_registered_method_handlers(SERVICE_NAME, handlers)


def _handler(method: Any, behaviour: Any) -> Handler:
    parse = GetMessageClass(method.input_type).FromString
    serialize = GetMessageClass(method.output_type).SerializeToString
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(behaviour, parse, serialize)
    return grpc.unary_unary_rpc_method_handler(behaviour, parse, serialize)


def _request_id(request: ModelInferRequest) -> str:
    return request.id[:MAX_ID_CHARACTERS]


def _stream_failure(request_id: str, failure: Failure) -> ModelStreamInferResponse:
    """A stream has no status for each request: the code stands before the message."""
    response = ModelInferResponse(id=request_id)
    response.parameters[FINAL_RESPONSE].bool_param = True
    return ModelStreamInferResponse(
        error_message=f"{failure.code}: {failure.message}", infer_response=response
    )


PROTOCOL = Protocol(
    model_fields=("model_name", "name"),
    decoding_methods=frozenset(DECODING_METHODS),
    admin_methods=frozenset({"RepositoryModelLoad", "RepositoryModelUnload"}),
    pool=POOL,
    request_id=_request_id,
    stream_failure=_stream_failure,
)
