"""`grpc.health.v1`: what is said of known and unknown services, to one watcher and to many."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.serving import PATIENCE_S, Served, error_of, eventually, one_version, serving

from dragoman.server.app import SERVICE_NAMES

Status = health_pb2.HealthCheckResponse


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(one_version(tmp_path, "spell/1")) as served:
        yield served


def stub(served: Served) -> Any:
    return health_pb2_grpc.HealthStub(served.channel)


def about(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_check_and_list_know_the_services(served: Served) -> None:
    for service in ("", *SERVICE_NAMES):
        assert (await stub(served).Check(about(service))).status == Status.SERVING
    listed = (await stub(served).List(health_pb2.HealthListRequest())).statuses  # type: ignore[attr-defined]
    assert {service: each.status for service, each in listed.items()} == dict.fromkeys(
        ("", *SERVICE_NAMES, "spell", "spell/1"), Status.SERVING
    )
    served.server._front._health.set_serving(serving=False)
    assert (await stub(served).Check(about(""))).status == Status.NOT_SERVING


async def test_an_unknown_service_is_not_found_and_can_be_watched(served: Served) -> None:
    error = await error_of(stub(served).Check(about("dragoman.v1.Nope")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "no service 'dragoman.v1.Nope'"
    watch = stub(served).Watch(about("dragoman.v1.Nope"))
    assert (await watch.read()).status == Status.SERVICE_UNKNOWN
    watch.cancel()


async def test_a_model_has_a_status_of_its_own(served: Served) -> None:
    for name in ("spell", "spell/1"):
        assert (await stub(served).Check(about(name))).status == Status.SERVING
    assert (await error_of(stub(served).Check(about("spell/2")))).code() is grpc.StatusCode.NOT_FOUND
    served.server._front._health.set_serving(serving=False)
    assert (await stub(served).Check(about("spell/1"))).status == Status.NOT_SERVING


async def test_a_version_that_goes_is_told_when_it_takes_no_more_calls(served: Served) -> None:
    registry = served.server._registry
    [model] = registry.models
    async with asyncio.timeout(PATIENCE_S):
        watch = stub(served).Watch(about("spell/1"))
        assert (await watch.read()).status == Status.SERVING
        with registry.lease("spell"):
            removing = asyncio.create_task(registry.remove("spell", "1"))
            assert (await watch.read()).status == Status.NOT_SERVING  # the lease is not returned yet
        await removing
        assert (await stub(served).Check(about("spell"))).status == Status.NOT_SERVING
        assert (await stub(served).Check(about(""))).status == Status.SERVING
        registry.add(model)
        assert (await watch.read()).status == Status.SERVING
        watch.cancel()


async def test_a_version_that_could_not_be_loaded_is_not_serving_while_another_serves(tmp_path: Path) -> None:
    one_version(tmp_path, "spell/1", "spell/2")
    (tmp_path / "spell" / "2" / "bundle.json").write_text("torn")
    async with serving(tmp_path) as served:
        assert (await stub(served).Check(about("spell/2"))).status == Status.NOT_SERVING
        for name in ("spell/1", "spell"):
            assert (await stub(served).Check(about(name))).status == Status.SERVING


async def test_every_watcher_hears_each_change_and_leaves_nothing(served: Served) -> None:
    health = served.server._front._health
    watches = [stub(served).Watch(about("")) for _ in range(20)]

    async def heard() -> list[int]:
        async with asyncio.timeout(PATIENCE_S):
            return [(await watch.read()).status for watch in watches]

    assert set(await heard()) == {Status.SERVING}
    for serving_now, status in ((False, Status.NOT_SERVING), (True, Status.SERVING)):
        health.set_serving(serving=serving_now)
        assert set(await heard()) == {status}
    for watch in watches:
        watch.cancel()
    await eventually(lambda: not health._watchers)
