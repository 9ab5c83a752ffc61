"""Schemas that Kubernetes' own objects and custom resources are held to, unknown fields refused."""

import functools
import gzip
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

__all__ = ["CUSTOM_GROUPS", "KUBERNETES_VERSIONS", "is_custom", "validate"]

# 1.27 is the first with stable gRPC probes; the other end is the newest the schemas package has.
KUBERNETES_VERSIONS = ["1.27", ".".join(kubernetes_validate.__version__.split(".")[:2])]

# The file of each custom resource's definition, and what it is of.
_FILES = {
    "Certificate": "cm_certificates",
    "Issuer": "cm_issuers",
    "BackendTLSPolicy": "gw_backendtlspolicies",
    "Gateway": "gw_gateways",
    "GRPCRoute": "gw_grpcroutes",
    "ScaledObject": "keda_so",
    "InferenceService": "ks_inferenceservices",
    "ServingRuntime": "ks_servingruntimes",
    "PodMonitor": "po_podmonitors",
    "PrometheusRule": "po_prometheusrules",
    "TrainingRuntime": "tr_trainingruntimes",
    "TrainJob": "tr_trainjobs",
}
CUSTOM_GROUPS = {
    "cert-manager.io",
    "gateway.networking.k8s.io",
    "keda.sh",
    "serving.kserve.io",
    "monitoring.coreos.com",
    "trainer.kubeflow.org",
}
# Definitions as their projects publish them, beside the repository; not part of it.
_FOLDER = Path(os.environ.get("CRD_SCHEMAS") or Path(__file__).parents[2] / "shared" / "crds")


def is_custom(manifest: dict[str, Any]) -> bool:
    """Whether an object is of a type that Kubernetes does not have itself."""
    return manifest["apiVersion"].partition("/")[0] in CUSTOM_GROUPS


def validate(manifest: dict[str, Any], kubernetes_version: str) -> None:
    """Raise where an object has a field that its type does not know, or a value of the wrong kind."""
    if is_custom(manifest):
        _custom(manifest["kind"], manifest["apiVersion"]).validate(manifest)
    else:
        _validate_own(json.dumps(manifest, sort_keys=True), kubernetes_version)


@functools.cache
def _validate_own(manifest: str, version: str) -> None:
    """Most objects are the same in many combinations: each is looked at once."""
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


@functools.cache
def _custom(kind: str, api_version: str) -> Any:
    file = _FOLDER / f"{_FILES[kind]}.yaml.gz"
    if not file.exists():
        pytest.skip(f"{file} is not there: {kind} is not validated")
    for definition in yaml.load_all(gzip.decompress(file.read_bytes()), Loader=yaml.CSafeLoader):
        if definition is not None and definition["spec"]["names"]["kind"] == kind:
            for version in definition["spec"]["versions"]:
                if f"{definition['spec']['group']}/{version['name']}" == api_version:
                    schema = _closed(version["schema"]["openAPIV3Schema"])
                    return jsonschema.validators.Draft202012Validator(schema)
    raise AssertionError(f"{file} defines no {kind} of {api_version}")


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as an API server holds objects to it: fields that it does not name are refused."""
    closed = {key: value for key, value in schema.items() if key != "description"}
    if "properties" in schema:
        closed["properties"] = {name: _closed(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    if isinstance(schema.get("items"), dict):
        closed["items"] = _closed(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    return closed
