"""Training on a cluster: an Indexed Job and a TrainJob that run the same command under torchrun."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.kustomizations import DEPLOY, Manifest, build, one
from tests.object_schemas import KUBERNETES_VERSIONS, is_custom, validate

from dragoman.model.run import RECIPE_FILE

FOLDERS = ["indexed-job", "trainjob"]


def objects(folder: str) -> list[Manifest]:
    return build(DEPLOY / "training" / folder)


def pod_of(folder: str) -> Manifest:
    if folder == "indexed-job":
        return dict(one(objects(folder), "Job", "dragoman-train")["spec"]["template"])
    (replicated,) = one(objects(folder), "TrainingRuntime")["spec"]["template"]["spec"]["replicatedJobs"]
    return dict(replicated["template"]["spec"]["template"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_fits_its_schema_and_lives_in_one_namespace(folder: str) -> None:
    for manifest in sorted(objects(folder), key=is_custom):
        assert manifest["metadata"]["namespace"] == "dragoman"
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "dragoman"
        validate(manifest, KUBERNETES_VERSIONS[-1])


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_are_restricted_and_no_server(folder: str) -> None:
    pod = pod_of(folder)
    assert "dragoman.dev/track" not in pod["metadata"]["labels"]  # no Service of the server selects it
    (policy,) = [m for m in objects(folder) if m["kind"] == "NetworkPolicy"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/runs", "/tmp"}


def test_both_run_the_same_command_on_as_many_nodes() -> None:
    job, runtime = (pod_of(folder)["spec"]["containers"][0] for folder in FOLDERS)
    train_job = one(objects("trainjob"), "TrainJob", "dragoman-dates")["spec"]["trainer"]
    assert job["command"] == runtime["command"]
    assert job["args"] == train_job["args"]
    assert job["resources"] == train_job["resourcesPerNode"]
    spec = one(objects("indexed-job"), "Job", "dragoman-train")["spec"]
    variables = {each["name"]: each.get("value") for each in job["env"]}
    assert (
        spec["completions"]
        == spec["parallelism"]
        == train_job["numNodes"]
        == int(variables["PET_NNODES"] or 0)
    )
    assert variables["RUN"] == train_job["env"][0]["value"]
    # The first pod is found by the name that the headless Service gives it.
    service = one(objects("indexed-job"), "Service", "dragoman-train")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert variables["PET_MASTER_ADDR"] == f"dragoman-train-0.{service['metadata']['name']}"
    assert pod_of("indexed-job")["spec"]["subdomain"] == service["metadata"]["name"]
    assert str(service["spec"]["ports"][0]["port"]) == variables["PET_MASTER_PORT"]


@pytest.mark.parametrize("begun", [False, True])
def test_the_command_begins_a_run_or_goes_on_with_it(tmp_path: Path, begun: bool) -> None:
    """The container's own command, with a torchrun that says what it was asked."""
    text = (DEPLOY / "training" / "indexed-job" / "job.yaml").read_text()
    (container,) = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    torchrun.chmod(0o755)
    run = tmp_path / "run of mine"
    run.mkdir()
    if begun:
        (run / RECIPE_FILE).touch()
    done = subprocess.run(
        [*container["command"], *container["args"], "--set", "training.max_steps=5"],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUN": str(run)},
    )
    asked = ["-m", "dragoman", "train", "--out", str(run), "dates", "--set", "training.max_steps=5"]
    assert done.stdout.splitlines() == [*asked, *(["--resume"] if begun else [])]
