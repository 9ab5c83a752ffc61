"""The Kubernetes objects: valid, hardened, and agreeing with the program they run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dragoman.server.config import ListenSettings, ServerSettings, load_settings

Manifest = dict[str, Any]
Build = Callable[[str], list[Manifest]]

OVERLAYS = ["overlays/cpu", "overlays/gpu"]
OPERATOR_KINDS = {"ServiceMonitor", "PrometheusRule"}
# 1.27 is the first with stable gRPC probes; the other end is the newest the schemas package has.
KUBERNETES_VERSIONS = ["1.27", ".".join(kubernetes_validate.__version__.split(".")[:2])]

GRACE_MARGIN_S = 10


def one(manifests: list[Manifest], kind: str, name: str = "dragoman") -> Manifest:
    found = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind}/{name}"
    return found[0]


def pod_of(manifests: list[Manifest]) -> Manifest:
    pod: Manifest = one(manifests, "Deployment")["spec"]["template"]
    return pod


def container_of(manifests: list[Manifest]) -> Manifest:
    (container,) = pod_of(manifests)["spec"]["containers"]
    return dict(container)


def settings_of(manifests: list[Manifest], tmp_path: Path) -> ServerSettings:
    """What the server reads in the pod: the ConfigMap behind the path that --config names."""
    container, pod = container_of(manifests), pod_of(manifests)["spec"]
    assert container["args"][0] == "--config"
    path = Path(container["args"][1])
    (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == str(path.parent)]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    config_map = one(manifests, "ConfigMap", volume["configMap"]["name"])
    file = tmp_path / path.name
    file.write_text(config_map["data"][path.name])
    return load_settings(file)


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest, build: Build) -> list[Manifest]:
    return build(request.param)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_every_object_fits_the_strict_schema_of_kubernetes(build: Build, folder: str, version: str) -> None:
    validated = 0
    for manifest in build(folder):
        if manifest["kind"] not in OPERATOR_KINDS:
            kubernetes_validate.validate(manifest, version, strict=True)
            validated += 1
    assert validated >= 9


def test_the_loader_pod_fits_the_schema_and_mounts_the_same_volume(deploy: Path, build: Build) -> None:
    loader = yaml.safe_load((deploy / "loader.yaml").read_text())
    kubernetes_validate.validate(loader, KUBERNETES_VERSIONS[-1], strict=True)
    assert_restricted(loader["spec"])
    claim = one(build("overlays/cpu"), "PersistentVolumeClaim", "dragoman-models")
    (volume,) = loader["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert loader["metadata"]["namespace"] == claim["metadata"]["namespace"]


def test_a_misspelt_field_would_be_found(build: Build) -> None:
    deployment = one(build("overlays/cpu"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(deployment, KUBERNETES_VERSIONS[-1], strict=True)


def test_everything_lives_in_one_namespace_that_enforces_the_restricted_standard(
    manifests: list[Manifest],
) -> None:
    namespace = one(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [m for m in manifests if m["kind"] != "Namespace"]
    assert {m["metadata"].get("namespace") for m in others} == {namespace["metadata"]["name"]}


def test_pods_meet_the_restricted_standard_and_more(manifests: list[Manifest]) -> None:
    pod = pod_of(manifests)["spec"]
    assert_restricted(pod)
    assert pod["automountServiceAccountToken"] is False
    account = one(manifests, "ServiceAccount", pod["serviceAccountName"])
    assert account["automountServiceAccountToken"] is False
    # A service called dragoman would otherwise set DRAGOMAN_PORT and the like in every pod.
    assert pod["enableServiceLinks"] is False


def assert_restricted(pod: Manifest) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, control by control."""
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    volume_kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert volume_kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.get("initContainers")
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert not {"privileged", "procMount", "runAsUser", "runAsNonRoot"} & context.keys()
        assert not any("hostPort" in port for port in container.get("ports", []))


def test_the_server_reads_the_config_map_and_the_ports_are_its_ports(
    manifests: list[Manifest], tmp_path: Path
) -> None:
    settings = settings_of(manifests, tmp_path).server
    container = container_of(manifests)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": settings.port, "metrics": settings.metrics_port}
    # The documented ports, so that what people know of the command holds in a cluster too.
    defaults = ListenSettings()
    assert ports == {"grpc": defaults.port, "metrics": defaults.metrics_port}
    # The kubelet probes, and Prometheus scrapes, the pod's address.
    assert settings.host == "0.0.0.0"
    assert settings.metrics_host in (None, "0.0.0.0")


def test_models_are_read_from_the_claimed_volume(manifests: list[Manifest], tmp_path: Path) -> None:
    directory = settings_of(manifests, tmp_path).models.directory
    (mount,) = [m for m in container_of(manifests)["volumeMounts"] if m["mountPath"] == str(directory)]
    assert mount["readOnly"] is True
    (volume,) = [v for v in pod_of(manifests)["spec"]["volumes"] if v["name"] == mount["name"]]
    one(manifests, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])


def test_readiness_is_asked_over_grpc_and_liveness_over_http(
    manifests: list[Manifest], tmp_path: Path
) -> None:
    container, settings = container_of(manifests), settings_of(manifests, tmp_path)
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["grpc"]["port"] == settings.server.port
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert not settings_of(manifests, tmp_path).security.http_tls


def test_the_grace_period_holds_the_whole_drain(manifests: list[Manifest], tmp_path: Path) -> None:
    settings = settings_of(manifests, tmp_path).server
    container, pod = container_of(manifests), pod_of(manifests)["spec"]
    drain_s = settings.drain_delay_s + settings.drain_timeout_s
    assert pod["terminationGracePeriodSeconds"] >= drain_s + GRACE_MARGIN_S
    # Endpoints leave balancers only after the probe has failed often enough to be believed.
    readiness = container["readinessProbe"]
    assert settings.drain_delay_s >= readiness["periodSeconds"] * readiness["failureThreshold"]


def test_threads_are_sized_from_a_cpu_limit_that_is_there(manifests: list[Manifest]) -> None:
    resources = container_of(manifests)["resources"]
    assert float(resources["limits"]["cpu"]) >= 1
    assert resources["requests"]["cpu"] == resources["limits"]["cpu"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_the_gpu_overlay_asks_for_a_gpu_and_tells_the_server(build: Build, tmp_path: Path) -> None:
    gpu, cpu = build("overlays/gpu"), build("overlays/cpu")
    assert container_of(gpu)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert settings_of(gpu, tmp_path).engine.provider == "cuda"
    assert container_of(gpu)["image"].endswith("-cuda")
    assert "nvidia.com/gpu" not in container_of(cpu)["resources"]["limits"]
    assert settings_of(cpu, tmp_path).engine.provider == "cpu"
    # The two files differ in [engine] only: what is said of draining and ports holds for both.
    assert settings_of(gpu, tmp_path).server == settings_of(cpu, tmp_path).server


def test_services_select_the_pods_and_name_their_ports(manifests: list[Manifest]) -> None:
    pod = pod_of(manifests)
    port_names = {port["name"] for port in container_of(manifests)["ports"]}
    services = [m for m in manifests if m["kind"] == "Service"]
    assert {service["metadata"]["name"] for service in services} == {"dragoman", "dragoman-headless"}
    for service in services:
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= port_names
        assert "grpc" in {port["name"] for port in service["spec"]["ports"]}
    assert one(manifests, "Service", "dragoman-headless")["spec"]["clusterIP"] == "None"


def test_selectors_of_deployment_budget_and_spread_match_the_pods(manifests: list[Manifest]) -> None:
    pod = pod_of(manifests)
    labels = pod["metadata"]["labels"].items()
    assert one(manifests, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels
    assert one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels
    topologies = pod["spec"]["topologySpreadConstraints"]
    assert {t["topologyKey"] for t in topologies} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
    for topology in topologies:
        assert topology["labelSelector"]["matchLabels"].items() <= labels


def test_the_autoscaler_owns_the_number_of_replicas(manifests: list[Manifest]) -> None:
    deployment = one(manifests, "Deployment")
    scaler = one(manifests, "HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in deployment["spec"]
    target = scaler["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"], target["name"]) == ("apps/v1", "Deployment", "dragoman")
    assert scaler["minReplicas"] <= scaler["maxReplicas"]
    assert scaler["metrics"]


def test_the_service_monitor_scrapes_each_pod_once(manifests: list[Manifest]) -> None:
    """The schemas package has no types of the Operator: check what its API reference asks for."""
    monitor = one(manifests, "ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"jobLabel", "selector", "endpoints"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["path"] == "/metrics"
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    scraped = [
        m
        for m in manifests
        if m["kind"] == "Service"
        and selector <= m["metadata"]["labels"].items()
        and endpoint["port"] in {port["name"] for port in m["spec"]["ports"]}
    ]
    assert len(scraped) == 1
    # The rules select job="dragoman", which the Operator takes from this label of the Service.
    assert scraped[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "dragoman"
