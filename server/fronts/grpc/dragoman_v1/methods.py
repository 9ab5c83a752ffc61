"""The methods of dragoman.v1 that decode, by the task of the model that they need."""

from collections.abc import Mapping

from google.protobuf.descriptor import ServiceDescriptor

from dragoman.server.bundle.tasks import Task
from dragoman.v1 import generation_pb2, translation_pb2

__all__ = ["DECODING_METHODS"]


def _names(service: ServiceDescriptor) -> tuple[str, ...]:
    return tuple(method.name for method in service.methods)


DECODING_METHODS: Mapping[Task, tuple[str, ...]] = {
    "translation": _names(translation_pb2.DESCRIPTOR.services_by_name["TranslationService"]),
    "generation": _names(generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]),
}
