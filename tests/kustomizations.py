"""Overlays of deploy/, and copies of them with other components, as an operator makes them."""

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = ["DEPLOY", "Manifest", "build", "copy_of", "one"]

Manifest = dict[str, Any]

DEPLOY = Path(__file__).parents[1] / "deploy"


def build(folder: Path) -> list[Manifest]:
    """The objects that `kubectl apply -k FOLDER` would send, freshly parsed."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the Kubernetes objects are not built")
    return [*yaml.load_all(_built(folder), Loader=yaml.CSafeLoader)]


def copy_of(overlay: str, folder: Path, components: Sequence[str] | None = None, **changes: Any) -> Path:
    """Copy an overlay of deploy/ to `folder`, with these `components` in place of its own and these keys changed."""
    shutil.copytree(DEPLOY / "overlays" / overlay, folder)
    file = folder / "kustomization.yaml"
    content = yaml.safe_load(file.read_text())
    if components is not None:
        content["components"] = [f"../../components/{name}" for name in components]
    for key in ("resources", "components", "transformers"):
        content[key] = [
            os.path.relpath(DEPLOY / "overlays" / overlay / path, folder) for path in content[key]
        ]
    file.write_text(yaml.safe_dump({**content, **changes}))
    return folder


def one(manifests: list[Manifest], kind: str, name: str = "dragoman") -> Manifest:
    """The only object of this kind and name."""
    found = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind}/{name}"
    return found[0]


@functools.cache
def _built(folder: Path) -> str:
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
