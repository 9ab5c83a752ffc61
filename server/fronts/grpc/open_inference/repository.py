"""Triton's extension for model repositories: what there is, in which state, and changes of it."""

from collections.abc import Mapping

from dragoman.inference.grpc_service_pb2 import (
    ModelRepositoryParameter,
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
)
from dragoman.server.errors import FieldViolation, InvalidRequest, shown
from dragoman.server.fronts.grpc.open_inference.parameters import parameter_path
from dragoman.server.models.catalog import VersionState
from dragoman.server.models.registry import Registry

__all__ = ["repository_index", "version_to_load", "version_to_unload"]

_STATES = {
    VersionState.LOADING: "LOADING",
    VersionState.SERVING: "READY",
    VersionState.DRAINING: "UNLOADING",
    VersionState.FAILED: "UNAVAILABLE",
    VersionState.UNLOADED: "UNAVAILABLE",
}
"""As Triton names them. An unloaded version has the reason that Triton gives it."""


def repository_index(request: RepositoryIndexRequest, registry: Registry) -> RepositoryIndexResponse:
    """Returns the state of every version, sorted as ListModels is; with `request.ready` only of those that take calls.

    Raises:
        InvalidRequest: a repository is named.
    """
    _check(_of_repository(request.repository_name))
    response = RepositoryIndexResponse()
    served = {(model.name, model.version) for model in registry.models}
    others = {(each.name, each.version): each for each in registry.catalog.versions}
    for name, version in sorted(served | others.keys()):
        if (name, version) in served:
            response.models.add(name=name, version=version, state="READY")
        elif not request.ready:
            status = others[name, version]
            reason = ": ".join(filter(None, (status.reason, status.description)))
            if status.state is VersionState.UNLOADED:
                reason = reason or "unloaded"
            response.models.add(name=name, version=version, state=_STATES[status.state], reason=reason)
    return response


def version_to_load(request: RepositoryModelLoadRequest) -> str:
    """Returns the version that `request` names, or "".

    Raises:
        InvalidRequest: it brings a configuration or files, names a repository, or has a parameter that is unknown.
    """
    return _version(request.parameters, request.repository_name, ignored=())


def version_to_unload(request: RepositoryModelUnloadRequest) -> str:
    """As `version_to_load`. No model of this server depends on another one: `unload_dependents` changes nothing."""
    return _version(request.parameters, request.repository_name, ignored=("unload_dependents",))


def _version(
    parameters: Mapping[str, ModelRepositoryParameter], repository: str, ignored: tuple[str, ...]
) -> str:
    violations = _of_repository(repository)
    for name, parameter in sorted(parameters.items()):
        if name in ignored:
            continue
        if name != "version":
            description = (
                "is unknown: models and their settings come from the models folder; there is version"
            )
            violations.append(FieldViolation(parameter_path(name), description))
        elif parameter.WhichOneof("parameter_choice") != "string_param":
            violations.append(FieldViolation(parameter_path(name), "is not a string (string_param)"))
    _check(violations)
    return parameters["version"].string_param if "version" in parameters else ""


def _of_repository(name: str) -> list[FieldViolation]:
    if not name:
        return []
    return [
        FieldViolation("repository_name", f"{shown(name)} is unknown: the server has one, without a name")
    ]


def _check(violations: list[FieldViolation]) -> None:
    if violations:
        raise InvalidRequest(violations)
