"""Components of deploy/ go together: each combination that makes sense is built and held to the schemas."""

import itertools
import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from tests.kustomizations import DEPLOY, Manifest, build, copy_of, one
from tests.object_schemas import CUSTOM_GROUPS, KUBERNETES_VERSIONS, is_custom, validate

OVERLAYS = ["local", "cpu", "gpu"]
MODELS = [["models-pvc", "loader"], ["models-fetch"], ["models-oci"]]
SECURITY: list[list[str]] = [[], ["tls", "tokens", "cert-manager"]]
AUTOSCALING: list[list[str]] = [["autoscaling-adapter"], ["autoscaling-cpu"], ["autoscaling-keda"]]
ACCESS: list[tuple[list[str], list[str]]] = [
    ([], []),
    ([], ["gateway"]),
    (["canary"], []),
    (["canary"], ["gateway", "canary-route"]),
]
# `canary` is first, so that what the others change is changed in both Deployments; see deploy/README.md.
COMBINATIONS = [
    [*first, *models, *security, "network-policy", "monitoring", *scaling, *last]
    + (["backend-tls"] if "tls" in security and "gateway" in last else [])
    for models, security, scaling, (first, last) in itertools.product(MODELS, SECURITY, AUTOSCALING, ACCESS)
]
# All with all overlays are for `make deploy-check`. These have every component in one of them.
CASES = (
    list(itertools.product(OVERLAYS, COMBINATIONS))
    if os.environ.get("DEPLOY_COMBINATIONS") == "all"
    else [("gpu", COMBINATIONS[-1]), ("local", COMBINATIONS[5]), ("cpu", COMBINATIONS[38])]
)


def check(manifests: list[Manifest], version: str = KUBERNETES_VERSIONS[-1]) -> None:
    # Custom resources last: without their definitions the test skips there.
    for manifest in sorted(manifests, key=is_custom):
        validate(manifest, version)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_of_an_overlay_fits_its_schema(overlay: str, version: str) -> None:
    manifests = build(DEPLOY / "overlays" / overlay)
    assert len(manifests) >= 8
    check(manifests, version)


@pytest.mark.parametrize(
    ("overlay", "components"), CASES, ids=lambda value: value if isinstance(value, str) else "+".join(value)
)
def test_a_combination_of_components_is_built_and_fits_the_schemas(
    tmp_path: Path, overlay: str, components: list[str]
) -> None:
    check(build(copy_of(overlay, tmp_path / overlay, components)))


def test_no_component_is_left_out() -> None:
    built = {name for _, components in CASES for name in components}
    # KServe's objects stand in place of base's; test_kserve.py has them.
    assert built | {"kserve"} == {folder.name for folder in (DEPLOY / "components").iterdir()}


def test_a_misspelt_field_would_be_found() -> None:
    deployment = one(build(DEPLOY / "overlays" / "cpu"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        validate(deployment, KUBERNETES_VERSIONS[-1])


def test_a_misspelt_field_of_a_custom_resource_would_be_found() -> None:
    scaled = one(build(DEPLOY / "overlays" / "cpu"), "ScaledObject")
    scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behaviour"] = {}
    with pytest.raises(jsonschema.ValidationError, match="behaviour"):
        validate(scaled, KUBERNETES_VERSIONS[-1])


# --- what one overlay says holds everywhere --------------------------------------------------------


EVERYTHING = COMBINATIONS[-1]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """Everything, in another namespace and with other images."""
    images = [
        {"name": name, "newName": f"registry.example.org/{name}", "newTag": "7"}
        for name in ("dragoman", "dragoman-canary", "dragoman-models")
    ]
    folder = tmp_path_factory.mktemp("elsewhere") / "gpu"
    return build(copy_of("gpu", folder, EVERYTHING, namespace="translation", images=images))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """A second release for the namespace of the first: everything but a canary, which needs a namespace of its own."""
    components = [name for name in EVERYTHING if not name.startswith("canary")]
    labels = [{"pairs": {"app.kubernetes.io/instance": "b"}, "includeSelectors": True}]
    folder = tmp_path_factory.mktemp("second") / "gpu"
    return build(copy_of("gpu", folder, components, nameSuffix="-b", labels=labels))


def texts(value: Any) -> list[str]:
    """All texts within an object."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []


def test_the_namespace_stands_nowhere_else(elsewhere: list[Manifest]) -> None:
    assert {m["metadata"].get("namespace") for m in elsewhere if m["kind"] != "Namespace"} == {"translation"}
    one(elsewhere, "Namespace", "translation")
    found = [t for m in elsewhere if m["kind"] != "ConfigMap" for t in texts(m)]
    assert not [text for text in found if ".dragoman." in text or 'namespace="dragoman"' in text]
    assert {"*.translation.svc", "*.translation.svc.cluster.local", "dragoman.translation.svc"} <= set(found)


def test_every_image_is_the_overlay_s(elsewhere: list[Manifest]) -> None:
    found = [
        container["image"]
        for m in elsewhere
        if m["kind"] == "Deployment"
        for container in m["spec"]["template"]["spec"]["containers"]
    ]
    found += [
        volume["image"]["reference"]
        for m in elsewhere
        if m["kind"] == "Deployment"
        for volume in m["spec"]["template"]["spec"]["volumes"]
        if "image" in volume
    ]
    assert set(found) == {
        f"registry.example.org/{name}:7" for name in ("dragoman", "dragoman-canary", "dragoman-models")
    }


def test_every_claim_has_the_storage_class_of_the_overlay(tmp_path: Path) -> None:
    manifests = build(copy_of("cpu", tmp_path / "cpu"))
    claims = [m for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    assert claims
    assert {claim["spec"]["storageClassName"] for claim in claims} == {"shared"}


def selectors(manifests: list[Manifest]) -> dict[str, dict[str, str]]:
    """What selects the server's pods, by kind and name."""
    found = {}
    for m in manifests:
        spec = m.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if m["kind"] != "PersistentVolumeClaim" and selector:
            found[f"{m['kind']}/{m['metadata']['name']}"] = dict(selector.get("matchLabels", selector))
    return found


def pods(manifests: list[Manifest]) -> dict[str, dict[str, str]]:
    """Labels of the pods of each Deployment."""
    return {
        m["metadata"]["name"]: m["spec"]["template"]["metadata"]["labels"]
        for m in manifests
        if m["kind"] == "Deployment"
    }


def test_two_releases_in_one_namespace_do_not_select_each_other_s_pods(second: list[Manifest]) -> None:
    first = build(DEPLOY / "overlays" / "gpu")
    for selecting, other in ((first, second), (second, first)):
        found = selectors(selecting)
        assert len(found) >= 6
        for what, selector in found.items():
            assert selector["app.kubernetes.io/name"] == "dragoman"
            for labels in pods(other).values():
                assert not selector.items() <= labels.items(), what


def test_stable_pods_canary_and_loader_are_selected_each_by_their_own(tmp_path: Path) -> None:
    manifests = build(
        copy_of("cpu", tmp_path / "cpu", ["canary", "models-pvc", "loader", "monitoring", "network-policy"])
    )
    found, labels = selectors(manifests), pods(manifests)
    assert set(labels) == {"dragoman", "dragoman-canary", "dragoman-loader"}
    selected = {
        what: {name for name, pod in labels.items() if selector.items() <= pod.items()}
        for what, selector in found.items()
    }
    for name in labels:
        assert selected[f"Deployment/{name}"] == {name}
    for name in ("dragoman", "dragoman-canary"):
        assert selected[f"Service/{name}"] == {name}
        assert selected[f"PodDisruptionBudget/{name}"] == {name}
    assert selected["Service/dragoman-headless"] == {"dragoman"}
    assert selected["Service/dragoman-headless-canary"] == {"dragoman-canary"}
    assert selected["NetworkPolicy/dragoman-server"] == {"dragoman", "dragoman-canary"}
    # The loader's pod has no port of this name, so nothing is scraped there.
    assert selected["PodMonitor/dragoman"] >= {"dragoman", "dragoman-canary"}


def test_a_release_s_custom_resources_name_its_own_objects(second: list[Manifest]) -> None:
    assert one(second, "ScaledObject", "dragoman-b")["spec"]["scaleTargetRef"]["name"] == "dragoman-b"
    route = one(second, "GRPCRoute", "dragoman-b")["spec"]
    assert route["parentRefs"][0]["name"] == one(second, "Gateway", "dragoman-b")["metadata"]["name"]
    for backend in route["rules"][0]["backendRefs"]:
        one(second, "Service", backend["name"])
    assert sum(backend["weight"] for backend in route["rules"][0]["backendRefs"]) == 100
    policy = one(second, "BackendTLSPolicy", "dragoman-b")["spec"]
    one(second, "Service", policy["targetRefs"][0]["name"])
    for certificate in (m for m in second if m["kind"] == "Certificate"):
        one(second, "Issuer", certificate["spec"]["issuerRef"]["name"])


def test_what_components_change_is_changed_in_the_canary_too(elsewhere: list[Manifest]) -> None:
    stable, canary = (
        one(elsewhere, "Deployment", name)["spec"]["template"]["spec"]
        for name in ("dragoman", "dragoman-canary")
    )
    for key in ("args", "resources", "volumeMounts", "startupProbe", "readinessProbe"):
        assert canary["containers"][0][key] == stable["containers"][0][key]
    assert canary["tolerations"] == stable["tolerations"]


def test_custom_groups_are_those_of_the_components() -> None:
    named = {
        document["apiVersion"].partition("/")[0]
        for path in (DEPLOY / "components").rglob("*.yaml")
        for document in yaml.safe_load_all(path.read_text())
        if isinstance(document, dict) and "." in document.get("apiVersion", "").partition("/")[0]
    }
    assert named - CUSTOM_GROUPS <= {"networking.k8s.io", "kustomize.config.k8s.io"}
