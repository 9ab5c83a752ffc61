"""Installations of the wheel: an environment that holds what an extra brings, and nothing of the source tree."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from tests.distributions import distributions_of

__all__ = ["Installation", "build_sdist", "build_wheel", "install"]

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Installation:
    """An environment of its own. Programs run in `folder` with the variables `environment`."""

    programs: Path
    folder: Path
    environment: dict[str, str]

    def command(self, program: str, *arguments: str) -> list[str]:
        return [str(self.programs / program), *arguments]

    def run(self, program: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(program, *arguments),
            check=False,
            cwd=self.folder,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )


def build_sdist(folder: Path) -> Path:
    """Unpack in `folder` what a source distribution holds; returns its root."""
    _build("sdist", _ROOT, folder)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of the source tree `source`, which gets the compiled kernels too, compiled in a hurry."""
    variables = {}
    if compiler := os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None):
        hurried = folder / "compiler"
        hurried.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
        hurried.chmod(0o755)
        variables["CXX"] = str(hurried)
    _build("wheel", source, folder, **variables)
    [wheel] = folder.glob("*.whl")
    return wheel


def install(wheel: Path, home: Path, folder: Path, *extras: str) -> Installation:
    """Install the wheel in a new environment with links to what its dependencies installed here.

    With the extra `train` the environment sees everything that is installed here but the source tree.
    """
    builder = venv.EnvBuilder(symlinks=True)
    paths: Any = builder.ensure_directories(home)
    builder.create(home)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    if "train" not in extras:  # whose links would be tens of thousands
        for name in distributions_of(*extras):
            _link_files(name, site)
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        paths.env_exe,
        "install",
    ]
    _run([*command, "--quiet", "--no-deps", "--no-index", str(wheel)])
    if "train" in extras:
        # After the installation, which would find its distribution there. The .pth files of that folder are not read.
        (site / "here.pth").write_text(sysconfig.get_path("purelib"))
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    return Installation(Path(paths.bin_path), folder, {**kept, "COLUMNS": "200", "PYTHONPATH": "."})


def _link_files(name: str, site: Path) -> None:
    installed = distribution(name)
    assert installed.files is not None
    for file in installed.files:
        if ".." in file.parts:  # a command beside the packages
            continue
        link = site / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(str(installed.locate_file(file))).resolve())


def _build(target: str, source: Path, folder: Path, **variables: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    _run(command, source, **variables)


def _run(command: list[str], folder: Path | None = None, **variables: str) -> None:
    done = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
