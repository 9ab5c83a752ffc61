"""What autoscalers ask Prometheus for, of pods as they are scraped."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.kustomizations import DEPLOY, build, copy_of, one

# Slots, used and waiting of the models of each pod; the labels are those that a PodMonitor gives.
PODS = {
    ("dragoman-5c9-aaaaa", "dragoman", "stable"): {"dates": (32, 32, 16), "spell": (32, 4, 0)},
    ("dragoman-5c9-ddddd", "dragoman", "stable"): {"dates": (32, 32, 320)},
    ("dragoman-5c9-bbbbb", "dragoman", "stable"): {"dates": (32, 8, 0), "spell": (32, 24, 0)},
    ("dragoman-canary-77-ccccc", "dragoman", "canary"): {"dates": (32, 32, 100)},
    ("dragoman-b-8d-eeeee", "b", "stable"): {"dates": (32, 16, 0)},
}


def answers(queries: dict[str, str], namespace: str, folder: Path) -> dict[str, float | None]:
    """What Prometheus's own engine answers: promtool is asked for a value that nothing has, and says what it got."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus): the queries are not tried")
    names = ("dragoman_slots_total", "dragoman_slots_used", "dragoman_requests_waiting")
    series = []
    for (pod, instance, track), models in PODS.items():
        target = f'namespace="{namespace}", job="dragoman", instance="{pod}:8002", pod="{pod}"'
        target += f', app_kubernetes_io_instance="{instance}", dragoman_dev_track="{track}"'
        for model, figures in models.items():
            for name, value in zip(names, figures, strict=True):
                series.append({"series": f'{name}{{{target}, model="{model}"}}', "values": f"{value}x9"})
    rules = [*(DEPLOY / "prometheus" / "rules").glob("*.yaml")]
    found: dict[str, float | None] = {}
    for name, query in queries.items():
        test = {
            "rule_files": [str(path) for path in rules],
            "evaluation_interval": "15s",
            "tests": [
                {
                    "interval": "15s",
                    "input_series": series,
                    "promql_expr_test": [
                        {"expr": query, "eval_time": "2m", "exp_samples": [{"labels": "{}", "value": -1}]}
                    ],
                }
            ],
        }
        (file := folder / f"{name}.yaml").write_text(yaml.safe_dump(test))
        done = subprocess.run(
            [promtool, "test", "rules", str(file)], check=False, capture_output=True, text=True
        )
        got = (done.stdout + done.stderr).partition("got:")[2].splitlines()
        assert got, done.stdout + done.stderr
        found[name] = None if got[0].strip() == "nil" else float(got[0].split()[-1])
    return found


@pytest.mark.parametrize(
    ("instance", "expected"),
    [
        # Of the pods in turn; neither canary nor other release. 1 and 2 are the most that a pod counts for.
        ("dragoman", {"utilization": 1 + 1 + 0.75, "waiting": 16 / 32 + 2}),
        ("b", {"utilization": 0.5, "waiting": 0.0}),
        # No series, no answer: KEDA takes that as a failure and keeps the pods.
        ("c", {"utilization": None, "waiting": None}),
    ],
)
def test_keda_asks_for_the_pods_that_it_scales(
    tmp_path: Path, instance: str, expected: dict[str, float | None]
) -> None:
    labels = [{"pairs": {"app.kubernetes.io/instance": instance}, "includeSelectors": True}]
    folder = copy_of("cpu", tmp_path / "cpu", namespace="translation", labels=labels)
    triggers = one(build(folder), "ScaledObject")["spec"]["triggers"]
    queries = {trigger["name"]: trigger["metadata"]["query"] for trigger in triggers}
    assert answers(queries, "translation", tmp_path) == expected


@pytest.mark.parametrize(
    ("pod", "expected"),
    [("aaaaa", (1.0, 0.5)), ("bbbbb", (0.75, 0.0)), ("ddddd", (1.0, 2.0))],
)
def test_the_adapter_serves_each_pod_s_own(tmp_path: Path, pod: str, expected: tuple[float, float]) -> None:
    values = yaml.safe_load(
        (DEPLOY / "components" / "autoscaling-adapter" / "adapter-values.yaml").read_text()
    )
    queries = {}
    for rule in values["rules"]["custom"]:
        series = rule["seriesQuery"].partition("{")[0]
        query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        query = query.replace("<<.LabelMatchers>>", f'namespace="translation", pod=~"dragoman-5c9-{pod}"')
        # Without its one label, as `answers` expects it.
        queries[rule["name"]["as"]] = f"sum({query})"
    found = answers(queries, "translation", tmp_path)
    assert found == dict(zip(("dragoman_utilization_ratio", "dragoman_waiting_ratio"), expected, strict=True))


def test_both_autoscalers_have_the_same_settings(tmp_path: Path) -> None:
    keda = one(build(copy_of("cpu", tmp_path / "keda")), "ScaledObject")["spec"]
    adapter = copy_of("cpu", tmp_path / "adapter", ["models-pvc", "monitoring", "autoscaling-adapter"])
    own = one(build(adapter), "HorizontalPodAutoscaler")["spec"]
    assert own["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert (own["minReplicas"], own["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"])
    targets = {
        metric["pods"]["metric"]["name"]: float(metric["pods"]["target"]["averageValue"].removesuffix("m"))
        / 1000
        for metric in own["metrics"]
    }
    assert targets == {
        f"dragoman_{trigger['name']}_ratio": float(trigger["metadata"]["threshold"])
        for trigger in keda["triggers"]
    }
