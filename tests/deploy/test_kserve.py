"""KServe: a runtime and a service that take a bundle as it is."""

import os
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from tests.kustomizations import DEPLOY, Manifest, build, one
from tests.object_schemas import KUBERNETES_VERSIONS, validate

from dragoman.cli.app import app
from dragoman.server.config import load_settings


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    folder = tmp_path_factory.mktemp("kserve")
    component = os.path.relpath(DEPLOY / "components" / "kserve", folder)
    images = [{"name": "dragoman", "newName": "registry.example.org/dragoman", "newTag": "7"}]
    content = {"namespace": "translation", "nameSuffix": "-b", "images": images, "components": [component]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return build(folder)


def test_the_objects_fit_their_schemas(manifests: list[Manifest]) -> None:
    assert {manifest["kind"] for manifest in manifests} == {"ServingRuntime", "InferenceService"}
    for manifest in manifests:
        assert manifest["metadata"]["namespace"] == "translation"
        validate(manifest, KUBERNETES_VERSIONS[-1])


def test_the_service_names_the_runtime_and_its_format(manifests: list[Manifest]) -> None:
    runtime = one(manifests, "ServingRuntime", "dragoman-b")
    model = one(manifests, "InferenceService", "dragoman-b")["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {each["name"] for each in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (container,) = runtime["spec"]["containers"]
    assert container["image"] == "registry.example.org/dragoman:7"


def test_the_arguments_serve_the_bundles_where_kserve_lays_them(
    manifests: list[Manifest], tmp_path: Path
) -> None:
    (container,) = one(manifests, "ServingRuntime", "dragoman-b")["spec"]["containers"]
    group: Any = typer.main.get_command(app)
    options = group.commands["serve"].make_context("serve", container["args"].copy()).params
    for storage in one(manifests, "InferenceService", "dragoman-b")["spec"]["predictor"]["storageUris"]:
        # <models>/<name>/<version>
        assert Path(storage["mountPath"]).parents[1] == options["models"]
        assert storage["uri"].endswith("/".join(Path(storage["mountPath"]).parts[-2:]))
    assert options["host"] == "0.0.0.0"
    (port,) = container["ports"]
    assert port == {"name": "h2c", "containerPort": options["port"], "protocol": "TCP"}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == options["metrics_port"]
    (file := tmp_path / "empty.toml").touch()
    settings = load_settings(file, overrides=options["overrides"])
    predictor = one(manifests, "InferenceService", "dragoman-b")["spec"]["predictor"]
    drain_s = settings.server.drain_delay_s + settings.server.drain_timeout_s
    assert predictor["terminationGracePeriodSeconds"] >= drain_s + 10
    assert 30 <= settings.server.max_connection_age_s <= 60


def test_pods_are_restricted(manifests: list[Manifest]) -> None:
    predictor = one(manifests, "InferenceService", "dragoman-b")["spec"]["predictor"]
    assert predictor["automountServiceAccountToken"] is False
    assert predictor["securityContext"]["runAsNonRoot"] is True
    assert predictor["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = one(manifests, "ServingRuntime", "dragoman-b")["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
