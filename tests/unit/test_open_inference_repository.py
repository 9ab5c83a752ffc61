"""Requests of Triton's extension for model repositories, and the state of versions as it names them."""

import pytest

from dragoman.inference.grpc_service_pb2 import (
    RepositoryIndexRequest,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
)
from dragoman.server.errors import InvalidRequest
from dragoman.server.fronts.grpc.open_inference.repository import (
    repository_index,
    version_to_load,
    version_to_unload,
)
from dragoman.server.models.catalog import Catalog, VersionState, VersionStatus
from dragoman.server.models.registry import Registry


def test_states_have_tritons_names_and_say_why() -> None:
    registry = Registry()
    registry.catalog = Catalog(
        (
            VersionStatus("dates", "1", VersionState.DRAINING),
            VersionStatus("dates", "2", VersionState.FAILED, "broken", "a graph fails"),
            VersionStatus("dates", "3", VersionState.LOADING),
            VersionStatus("spell", "1", VersionState.UNLOADED),
        )
    )
    index = repository_index(RepositoryIndexRequest(), registry).models
    assert [(each.version, each.state, each.reason) for each in index] == [
        ("1", "UNLOADING", ""),
        ("2", "UNAVAILABLE", "broken: a graph fails"),
        ("3", "LOADING", ""),
        ("1", "UNAVAILABLE", "unloaded"),
    ]
    assert not repository_index(RepositoryIndexRequest(ready=True), registry).models


def test_a_version_may_be_named() -> None:
    load = RepositoryModelLoadRequest(model_name="spell")
    assert version_to_load(load) == ""
    load.parameters["version"].string_param = "2"
    assert version_to_load(load) == "2"
    unload = RepositoryModelUnloadRequest(model_name="spell")
    unload.parameters["unload_dependents"].bool_param = True  # tritonclient always sends it
    unload.parameters["version"].string_param = "1"
    assert version_to_unload(unload) == "1"


def test_a_model_brings_neither_its_configuration_nor_its_files() -> None:
    load = RepositoryModelLoadRequest(model_name="spell", repository_name="theirs")
    load.parameters["config"].string_param = "{}"
    load.parameters["file:1/model.onnx"].bytes_param = b""
    load.parameters["version"].int64_param = 1
    with pytest.raises(InvalidRequest) as caught:
        version_to_load(load)
    assert [each.field for each in caught.value.violations] == [
        "repository_name",
        "parameters['config']",
        "parameters['file:1/model.onnx']",
        "parameters['version']",
    ]
