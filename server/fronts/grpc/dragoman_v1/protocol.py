"""The facts that the front needs of the services of dragoman.v1."""

from collections.abc import Mapping

from google.protobuf.descriptor import ServiceDescriptor

from dragoman.server.bundle.tasks import Task
from dragoman.server.fronts.grpc.chains import Protocol
from dragoman.v1 import generation_pb2, translation_pb2

__all__ = ["DECODING_METHODS", "PROTOCOL"]


def _names(service: ServiceDescriptor) -> tuple[str, ...]:
    return tuple(method.name for method in service.methods)


DECODING_METHODS: Mapping[Task, tuple[str, ...]] = {
    "translation": _names(translation_pb2.DESCRIPTOR.services_by_name["TranslationService"]),
    "generation": _names(generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]),
}
"""The methods that decode, by the task of the model that they need."""

PROTOCOL = Protocol(
    model_fields=("model",),
    decoding_methods=frozenset().union(*DECODING_METHODS.values()),
    admin_methods=frozenset({"LoadModel", "UnloadModel", "SetAlias", "DeleteAlias"}),
)
