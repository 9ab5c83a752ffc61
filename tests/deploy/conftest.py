"""What the deployment tests share: built overlays, and one real server started as a pod starts it."""

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

DEPLOY = Path(__file__).parents[2] / "deploy"


@cache
def _build(folder: str) -> str:
    command = ["kubectl", "kustomize", str(DEPLOY / folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def deploy() -> Path:
    return DEPLOY


@pytest.fixture(scope="session")
def build() -> Callable[[str], list[Manifest]]:
    """Gives the objects that `kubectl apply -k deploy/<folder>` would send, freshly parsed."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the Kubernetes overlays are not built")
    return lambda folder: list(yaml.safe_load_all(_build(folder)))
