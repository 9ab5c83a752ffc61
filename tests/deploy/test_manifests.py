"""The Kubernetes objects: hardened, and agreeing with the program they run."""

from pathlib import Path
from typing import Any

import pytest
import typer.main
from tests.kustomizations import DEPLOY, Manifest, build, copy_of, one

from dragoman.cli.app import app
from dragoman.cli.bundle_fetching import read_list
from dragoman.server.config import ListenSettings, ServerSettings, load_settings

OVERLAYS = ["local", "cpu", "gpu"]
EVERYTHING = [
    "canary", "models-oci", "tls", "tokens", "cert-manager", "network-policy", "monitoring", "autoscaling-keda",
    "gateway", "canary-route", "backend-tls",
]  # fmt: skip
GRACE_MARGIN_S = 10


FETCHING = ["models-fetch", "network-policy", "autoscaling-adapter"]


@pytest.fixture(scope="module", params=[*OVERLAYS, "everything", "fetching"])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    if request.param == "everything":
        return build(copy_of("gpu", tmp_path_factory.mktemp("overlay") / "gpu", EVERYTHING))
    if request.param == "fetching":
        return build(copy_of("cpu", tmp_path_factory.mktemp("overlay") / "cpu", FETCHING))
    return build(DEPLOY / "overlays" / str(request.param))


def overlay(name: str) -> list[Manifest]:
    return build(DEPLOY / "overlays" / name)


def workloads_of(manifests: list[Manifest]) -> list[Manifest]:
    found = [m for m in manifests if m["kind"] in ("Deployment", "Job")]
    assert found
    return found


def servers_of(manifests: list[Manifest]) -> list[Manifest]:
    """Deployments whose pods are servers: the stable one, perhaps a canary."""
    found = [
        m
        for m in workloads_of(manifests)
        if m["metadata"]["labels"]["app.kubernetes.io/component"] == "server"
    ]
    assert found
    return found


def pod_of(deployment: Manifest) -> Manifest:
    return dict(deployment["spec"]["template"]["spec"])


def container_of(deployment: Manifest) -> Manifest:
    (container,) = pod_of(deployment)["containers"]
    return dict(container)


def settings_of(deployment: Manifest, manifests: list[Manifest], folder: Path) -> ServerSettings:
    """What the server reads in the pod: the ConfigMap behind the path that --config names, and what --set changes."""
    container, pod = container_of(deployment), pod_of(deployment)
    first, *others = container["args"]
    path = Path(first.removeprefix("--config="))
    (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == str(path.parent)]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    config_map = one(manifests, "ConfigMap", volume["configMap"]["name"])
    file = folder / path.name
    file.write_text(config_map["data"][path.name])
    overrides = [each.removeprefix("--set=") for each in others if each.startswith("--set=")]
    return load_settings(file, overrides=overrides)


def test_everything_lives_in_one_namespace_that_enforces_the_restricted_standard(
    manifests: list[Manifest],
) -> None:
    namespace = one(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [m for m in manifests if m["kind"] != "Namespace"]
    assert {m["metadata"].get("namespace") for m in others} == {namespace["metadata"]["name"]}


def test_every_object_says_what_and_which_release_it_is_of(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "dragoman", manifest
        assert labels["app.kubernetes.io/instance"] == "dragoman", manifest


def test_pods_meet_the_restricted_standard_and_more(manifests: list[Manifest]) -> None:
    for workload in workloads_of(manifests):
        pod = pod_of(workload)
        assert_restricted(pod)
        assert pod["automountServiceAccountToken"] is False
        # A service called dragoman would otherwise set DRAGOMAN_PORT and the like in every pod.
        assert pod["enableServiceLinks"] is False
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            for bound in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][bound].keys()
    for server in servers_of(manifests):
        account = one(manifests, "ServiceAccount", pod_of(server)["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False


def assert_restricted(pod: Manifest) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, control by control."""
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    volume_kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert volume_kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "image"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert not {"privileged", "procMount", "runAsUser", "runAsNonRoot"} & context.keys()
        assert not any("hostPort" in port for port in container.get("ports", []))


def test_files_of_secrets_are_readable_by_the_server_and_by_nobody_else(manifests: list[Manifest]) -> None:
    for server in servers_of(manifests):
        pod = pod_of(server)
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
        for volume in pod["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440
                assert not volume["secret"].get(
                    "optional"
                )  # a pod without it says so, and does not start open


def test_the_server_reads_the_config_map_and_the_ports_are_its_ports(
    manifests: list[Manifest], tmp_path: Path
) -> None:
    for server in servers_of(manifests):
        settings = settings_of(server, manifests, tmp_path).server
        ports = {port["name"]: port["containerPort"] for port in container_of(server)["ports"]}
        assert ports == {"grpc": settings.port, "metrics": settings.metrics_port}
        # The documented ports, so that what people know of the command holds in a cluster too.
        defaults = ListenSettings()
        assert ports == {"grpc": defaults.port, "metrics": defaults.metrics_port}
        # The kubelet probes, and Prometheus scrapes, the pod's address.
        assert settings.host == "0.0.0.0"
        assert settings.metrics_host in (None, "0.0.0.0")


def test_all_arguments_are_options_of_serve(manifests: list[Manifest]) -> None:
    group: Any = typer.main.get_command(app)
    options = {name for parameter in group.commands["serve"].params for name in parameter.opts}
    for server in servers_of(manifests):
        assert {argument.partition("=")[0] for argument in container_of(server)["args"]} <= options


def test_every_file_that_an_argument_names_is_on_a_volume(manifests: list[Manifest]) -> None:
    for server in servers_of(manifests):
        container = container_of(server)
        mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        everywhere = [container, *pod_of(server).get("initContainers", [])]
        names = {mount["name"] for each in everywhere for mount in each["volumeMounts"]}
        assert names == {volume["name"] for volume in pod_of(server)["volumes"]}
        for argument in container["args"]:
            value = argument.partition("=")[2]
            if value.startswith("/"):
                assert mounted[str(Path(value).parent)]["readOnly"] is True


def test_models_are_read_from_a_volume(manifests: list[Manifest], tmp_path: Path) -> None:
    for server in servers_of(manifests):
        directory = settings_of(server, manifests, tmp_path).models.directory
        (mount,) = [m for m in container_of(server)["volumeMounts"] if m["mountPath"] == str(directory)]
        assert mount["readOnly"] is True
        (volume,) = [v for v in pod_of(server)["volumes"] if v["name"] == mount["name"]]
        if "persistentVolumeClaim" in volume:
            one(manifests, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])


def test_fetched_models_land_where_the_server_reads_them(tmp_path: Path) -> None:
    manifests = build(copy_of("cpu", tmp_path / "cpu", FETCHING))
    (server,) = servers_of(manifests)
    (init,) = pod_of(server)["initContainers"]
    assert init["image"] == container_of(server)["image"]
    assert init["command"] == ["dragoman", "models", "fetch"]
    file, out = Path(init["args"][0]), init["args"][1].removeprefix("--out=")
    mounted = {mount["mountPath"]: mount["name"] for mount in init["volumeMounts"]}
    (shared,) = [m for m in container_of(server)["volumeMounts"] if m["name"] == mounted[out]]
    assert shared["mountPath"] == str(settings_of(server, manifests, tmp_path).models.directory)
    assert shared["readOnly"] is True
    (volume,) = [v for v in pod_of(server)["volumes"] if v["name"] == mounted[str(file.parent)]]
    config_map = one(manifests, "ConfigMap", volume["configMap"]["name"])
    (written := tmp_path / file.name).write_text(config_map["data"][file.name])
    assert read_list(written)


def test_readiness_is_asked_over_grpc_where_the_kubelet_can_and_liveness_over_http(
    manifests: list[Manifest], tmp_path: Path
) -> None:
    for server in servers_of(manifests):
        container, settings = container_of(server), settings_of(server, manifests, tmp_path)
        with_tls = any(argument.startswith("--tls-cert=") for argument in container["args"])
        for probe in ("startupProbe", "readinessProbe"):
            if with_tls:  # the kubelet speaks gRPC in plain text only
                assert container[probe]["httpGet"] == {"path": "/readyz", "port": "metrics"}
                assert "grpc" not in container[probe]
            else:
                assert container[probe]["grpc"]["port"] == settings.server.port
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
        assert not settings.security.http_tls


def test_a_large_bundle_has_time_to_load_and_the_rollout_waits_for_it(manifests: list[Manifest]) -> None:
    for server in servers_of(manifests):
        probe = container_of(server)["startupProbe"]
        patience_s = probe["periodSeconds"] * probe["failureThreshold"]
        assert patience_s >= 600
        assert server["spec"]["progressDeadlineSeconds"] > patience_s + server["spec"]["minReadySeconds"]


def test_the_grace_period_holds_the_whole_drain(manifests: list[Manifest], tmp_path: Path) -> None:
    for server in servers_of(manifests):
        settings = settings_of(server, manifests, tmp_path).server
        drain_s = settings.drain_delay_s + settings.drain_timeout_s
        assert pod_of(server)["terminationGracePeriodSeconds"] >= drain_s + GRACE_MARGIN_S
        # Endpoints leave balancers only after the probe has failed often enough to be believed.
        readiness = container_of(server)["readinessProbe"]
        assert settings.drain_delay_s >= readiness["periodSeconds"] * readiness["failureThreshold"]
        # Clients that come from a Service's name find new pods within a minute.
        assert 30 <= settings.max_connection_age_s <= 60


def test_threads_are_sized_from_a_cpu_limit_that_is_there(manifests: list[Manifest]) -> None:
    for server in servers_of(manifests):
        resources = container_of(server)["resources"]
        assert float(resources["limits"]["cpu"]) >= 1
        assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_pods_for_production_have_the_cores_that_they_were_sized_for() -> None:
    for name in ("cpu", "gpu"):
        (server,) = servers_of(overlay(name))
        resources = container_of(server)["resources"]
        assert resources["requests"]["cpu"] == resources["limits"]["cpu"]


def test_the_gpu_overlay_asks_for_a_gpu_and_tells_the_server(tmp_path: Path) -> None:
    gpu, cpu = overlay("gpu"), overlay("cpu")
    [on_gpu], [on_cpu] = servers_of(gpu), servers_of(cpu)
    assert container_of(on_gpu)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container_of(on_gpu)["image"].endswith("-cuda")
    assert "nvidia.com/gpu" not in container_of(on_cpu)["resources"]["limits"]
    settings = [settings_of(on_gpu, gpu, tmp_path), settings_of(on_cpu, cpu, tmp_path)]
    assert [each.engine.provider for each in settings] == ["cuda", "cpu"]
    # The two differ in [engine] only: what is said of draining and ports holds for both.
    assert settings[0].model_copy(update={"engine": settings[1].engine}) == settings[1]


def fewest_pods(manifests: list[Manifest], deployment: Manifest) -> int:
    """The fewest that an autoscaler, or the Deployment itself, keeps."""
    for manifest in manifests:
        target = manifest.get("spec", {}).get("scaleTargetRef")
        if target is not None and target["name"] == deployment["metadata"]["name"]:
            spec = manifest["spec"]
            return int(spec.get("minReplicas", spec.get("minReplicaCount")))
    return int(deployment["spec"].get("replicas", 1))


def test_no_rollout_goes_through_a_moment_without_a_ready_pod(manifests: list[Manifest]) -> None:
    for server in servers_of(manifests):
        pace = server["spec"]["strategy"]["rollingUpdate"]
        assert pace["maxSurge"] + pace["maxUnavailable"] >= 1
        assert fewest_pods(manifests, server) - pace["maxUnavailable"] >= 1
        assert server["spec"]["minReadySeconds"] >= 5


def test_services_name_ports_of_the_pods(manifests: list[Manifest]) -> None:
    for server in servers_of(manifests):
        port_names = {port["name"] for port in container_of(server)["ports"]}
        labels = server["spec"]["template"]["metadata"]["labels"].items()
        services = [
            m for m in manifests if m["kind"] == "Service" and m["spec"]["selector"].items() <= labels
        ]
        assert len(services) == 2
        assert "None" in {service["spec"].get("clusterIP") for service in services}
        for service in services:
            assert {port["name"] for port in service["spec"]["ports"]} == {"grpc"}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= port_names


def test_pods_are_spread_and_their_budget_is_theirs(manifests: list[Manifest]) -> None:
    for server in servers_of(manifests):
        labels = server["spec"]["template"]["metadata"]["labels"]
        selector = {key: labels[key] for key in server["spec"]["selector"]["matchLabels"]}
        assert set(selector) == {"app.kubernetes.io/name", "app.kubernetes.io/instance", "dragoman.dev/track"}
        topologies = pod_of(server)["topologySpreadConstraints"]
        keys = {topology["topologyKey"] for topology in topologies}
        assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for topology in topologies:
            assert topology["labelSelector"]["matchLabels"] == selector
        budget = one(manifests, "PodDisruptionBudget", server["metadata"]["name"])
        assert budget["spec"]["selector"]["matchLabels"] == selector


def test_an_autoscaler_owns_the_number_of_replicas() -> None:
    for name in ("cpu", "gpu"):
        manifests = overlay(name)
        (server,) = servers_of(manifests)
        scaler = one(manifests, "ScaledObject")["spec"]
        assert "replicas" not in server["spec"]
        target = scaler["scaleTargetRef"]
        assert (target["apiVersion"], target["kind"], target["name"]) == ("apps/v1", "Deployment", "dragoman")
        assert 2 <= scaler["minReplicaCount"] < scaler["maxReplicaCount"]
        assert scaler["minReplicaCount"] <= scaler["fallback"]["replicas"] <= scaler["maxReplicaCount"]


def test_prometheus_scrapes_a_port_that_the_pods_have(manifests: list[Manifest]) -> None:
    for monitor in (m for m in manifests if m["kind"] == "PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["path"] == "/metrics"
        for server in servers_of(manifests):
            labels = server["spec"]["template"]["metadata"]["labels"]
            assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
            assert endpoint["port"] in {port["name"] for port in container_of(server)["ports"]}
            # The rules select job="dragoman", which the Operator takes from this label of the pod.
            assert labels[monitor["spec"]["jobLabel"]] == "dragoman"


def test_policies_open_what_is_needed_and_nothing_else() -> None:
    manifests = overlay("cpu")
    policies = {m["metadata"]["name"]: m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"}
    assert policies["dragoman-default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (server,) = servers_of(manifests)
    labels = server["spec"]["template"]["metadata"]["labels"]
    ingress = policies["dragoman-server"]
    assert ingress["podSelector"]["matchLabels"].items() <= labels.items()
    ports = {port["port"]: rule["from"] for rule in ingress["ingress"] for port in rule["ports"]}
    # By number: KServe's pods have other names for them.
    assert ports.keys() == {port["containerPort"] for port in container_of(server)["ports"]}
    assert all(
        sources for sources in ports.values()
    )  # nobody is let in by an empty list, which means everybody
    assert not any("ipBlock" in source for sources in ports.values() for source in sources)
