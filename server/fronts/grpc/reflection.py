"""Server reflection, versions v1 and v1alpha: tools learn the services without their files.

grpcio-reflection has v1alpha alone. v1 has the same messages under another name
(https://github.com/grpc/grpc/blob/master/doc/server-reflection.md), so one servicer answers both.
"""

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from dragoman.server.fronts.grpc.authentication import GuardedServer

__all__ = ["add_reflection"]

_ALPHA, _STABLE = "grpc.reflection.v1alpha", "grpc.reflection.v1"
_STABLE_SERVICE = f"{_STABLE}.ServerReflection"


def add_reflection(
    server: GuardedServer, service_names: Sequence[str], pools: Sequence[DescriptorPool]
) -> None:
    """Add both versions to `server`. What they tell is looked up in `pools` and then in protobuf's default one."""
    listed = (*service_names, reflection.SERVICE_NAME, _STABLE_SERVICE)
    servicer = reflection.aio.ReflectionServicer(
        listed, pool=_Pools((*pools, _stable_pool(), descriptor_pool.Default()))
    )
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (reflection.SERVICE_NAME, _STABLE_SERVICE):
        server.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})


def _stable_pool() -> DescriptorPool:
    """Returns a pool with the descriptors of v1, which are those of v1alpha under another name."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = _STABLE
    for message in file.message_type:
        for field in filter(lambda each: each.type_name, message.field):
            field.type_name = field.type_name.replace(f".{_ALPHA}.", f".{_STABLE}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{_ALPHA}.", f".{_STABLE}.")
        method.output_type = method.output_type.replace(f".{_ALPHA}.", f".{_STABLE}.")
    pool = DescriptorPool()
    pool.Add(file)
    return pool


class _Pools:
    """Several pools, as far as reflection asks one."""

    def __init__(self, pools: Sequence[DescriptorPool]) -> None:
        self._pools = pools

    def FindFileByName(self, name: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindExtensionByNumber(message, number))

    def FindAllExtensions(self, message: Any) -> Any:  # noqa: N802
        return descriptor_pool.Default().FindAllExtensions(message)

    def _first(self, find: Callable[[DescriptorPool], Any]) -> Any:
        for pool in self._pools[:-1]:
            try:
                return find(pool)
            except (KeyError, TypeError):
                continue
        return find(self._pools[-1])
