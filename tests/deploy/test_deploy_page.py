"""The commands of docs/deploy.md, as far as they need no cluster, and what a pod says that lacks something."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
import yaml
from tests.deploy.conftest import BUNDLES, DEPLOY, ROOT
from tests.kustomizations import build, copy_of, one

PAGE = ROOT / "docs" / "deploy.md"
APPLIED = re.compile(r"^kubectl apply -k (\S+)$", re.MULTILINE)
PATIENCE_S = 60


def test_each_folder_that_the_page_applies_builds(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the Kubernetes objects are not built")
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    blocks = [
        block
        for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if APPLIED.search(block)
    ]
    for block in blocks:
        # What makes the folder is done; of kubectl's commands nothing needs a cluster then.
        script = re.sub(r"^(kubectl|make) .*\n", "", block, flags=re.MULTILINE)
        done = subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    built: dict[str, list[str]] = {}
    for folder in APPLIED.findall("".join(blocks)):
        command = ["kubectl", "kustomize", str(tmp_path / folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        built[folder] = [each["kind"] for each in yaml.safe_load_all(done.stdout)]
    assert built.keys() >= {"deploy/overlays/local", "deploy/overlays/mine", "deploy/overlays/kserve"}
    # `apply` makes no namespace that is not among the objects: then the block says it.
    for block in blocks:
        for folder in APPLIED.findall(block):
            assert "Namespace" in built[folder] or "kubectl create namespace dragoman" in block, folder


@pytest.fixture(scope="module")
def pod_arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a pod's container is started with that has Secrets for tokens and for TLS."""
    components = ["models-pvc", "tokens", "tls"]
    overlay = copy_of("cpu", tmp_path_factory.mktemp("pod") / "cpu", components)
    (container,) = one(build(overlay), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    return [str(each) for each in container["args"]]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    issued = trustme.CA().issue_cert("dragoman")
    issued.private_key_pem.write_to_path(folder / "tls.key")
    issued.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    return folder


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("models", r"cannot read the models folder \S+/models: No such file or directory"),
        ("models/*", r"no models in \S+/models: expected \S+/models/<name>/<version>/bundle\.json"),
        (
            "etc/dragoman-tokens/tokens.toml",
            r"cannot read tokens file \S+/tokens\.toml: No such file or directory",
        ),
        ("etc/dragoman-tls/tls.crt", r"cannot read certificate \S+/tls\.crt: No such file or directory"),
        ("etc/dragoman-tls/tls.key", r"cannot read key \S+/tls\.key: No such file or directory"),
        ("etc/dragoman/server.toml", r"cannot read \S+/server\.toml: No such file or directory"),
    ],
)
def test_a_pod_that_lacks_something_says_so_in_one_line(
    pod_arguments: list[str], certificates: Path, tmp_path: Path, missing: str, said: str
) -> None:
    """Started as in the pod, with the pod's folders below `tmp_path`."""
    etc = tmp_path / "etc"
    for folder in ("dragoman", "dragoman-tokens", "dragoman-tls"):
        (etc / folder).mkdir(parents=True)
    (tmp_path / "models" / "spell").mkdir(parents=True)
    (tmp_path / "models" / "spell" / "2").symlink_to(BUNDLES / "spell" / "2")
    config = (DEPLOY / "base" / "server.toml").read_text()
    (etc / "dragoman" / "server.toml").write_text(config.replace('"/models"', f'"{tmp_path}/models"'))
    (etc / "dragoman-tokens" / "tokens.toml").write_text(
        f'app = {{ hash = "sha256:{"0" * 64}", scopes = ["infer"] }}\n'
    )
    for name in ("tls.crt", "tls.key"):
        shutil.copy(certificates / name, etc / "dragoman-tls" / name)
    for path in etc.glob("dragoman-*/*"):
        path.chmod(0o440)  # the volumes' `defaultMode`
    for path in [*tmp_path.glob(missing)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    arguments = [each.replace("=/etc/", f"={etc}/") for each in pod_arguments]
    program = [str(Path(sys.executable).parent / "dragoman"), "serve"]
    ports = ["--host=127.0.0.1", "--port=0", "--metrics-port=0"]
    done = subprocess.run(
        [*program, *arguments, *ports], check=False, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    event = json.loads(line) if line.startswith("{") else {"error": line.removeprefix("error: ")}
    assert re.fullmatch(said, event["error"]), line
    assert not done.stdout
