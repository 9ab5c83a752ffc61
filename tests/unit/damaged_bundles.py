"""Copies of a committed bundle, damaged in one place, their hashes right again: what only a look at content finds."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from dragoman.server.bundle.reader import Bundle
from dragoman.server.engine.trial import check_answers
from dragoman.server.execution.backend import Backend

FIXTURES = Path(__file__).parents[1] / "fixtures"
TRANSLATION = "bundles/spell/1"
GENERATION = "bundles/count/1"
MAX_RUN_S = 1.0


def copy_of(fixture: str, folder: Path) -> Path:
    """A copy that may be damaged, as <folder>/<name>/<version>."""
    return Path(shutil.copytree(FIXTURES / fixture, folder / Path(*Path(fixture).parts[-2:])))


def load(folder: Path) -> Backend:
    """All that is checked before a bundle is served."""
    bundle = Bundle.read(folder)
    backend = Backend.load(bundle, provider="cpu", num_threads=1)
    check_answers(backend, max_run_s=MAX_RUN_S)
    return backend


def manifest_of(folder: Path) -> dict[str, Any]:
    """The content of bundle.json."""
    manifest: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace bundle.json."""
    (folder / "bundle.json").write_text(json.dumps(manifest))


def set_value(folder: Path, dotted: str, value: Any) -> None:
    """Set one key of bundle.json, such as `limits.max_source_tokens`."""
    manifest = manifest_of(folder)
    *sections, last = (int(part) if part.isdecimal() else part for part in dotted.split("/"))
    place: Any = manifest
    for section in sections:
        place = place[section]
    place[last] = value
    write_manifest(folder, manifest)


def seal(folder: Path) -> None:
    """Make sizes and hashes of bundle.json those of the files."""
    manifest = manifest_of(folder)
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "num_bytes": len(content),
        }
    write_manifest(folder, manifest)


def change_graph(folder: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change one graph; the manifest then says of it what is so."""
    path = folder / f"{name}.onnx"
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    manifest = manifest_of(folder)
    manifest["graphs"][name]["inputs"] = [value.name for value in model.graph.input]
    manifest["graphs"][name]["outputs"] = [value.name for value in model.graph.output]
    write_manifest(folder, manifest)
    seal(folder)
