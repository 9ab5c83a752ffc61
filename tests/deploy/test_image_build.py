"""How tools/build_image.py chooses an engine and calls it, with programs in the engines' place."""

import os
import shlex
import sys
from pathlib import Path

import pytest
from tools.build_image import ROOT, ImageNotBuilt, build_image, find_engine, main


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that is searched for programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_an_engine_that_is_installed_and_does_not_work_is_passed_over(programs: Path) -> None:
    put(programs, "docker", "exit 1")  # the command without its daemon
    put(programs, "buildah", "exit 0")
    assert find_engine() == "buildah"
    put(programs, "podman", "exit 0")
    assert find_engine() == "podman"


def test_without_an_engine_one_line_says_so(
    programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["build_image.py"])
    assert main() == 1
    assert (
        capsys.readouterr().err
        == "error: none of docker, podman and buildah works here (Debian: apt-get install buildah)\n"
    )


def test_docker_builds_the_target_of_the_dockerfile_from_the_root(programs: Path, tmp_path: Path) -> None:
    put(programs, "git", "echo 0123abc")
    put(
        programs,
        "docker",
        f'pwd > {shlex.quote(str(tmp_path))}/where; echo "$@" > {shlex.quote(str(tmp_path))}/how',
    )
    build_image("train", "dragoman:x", engine="docker", base="registry")
    assert Path((tmp_path / "where").read_text().strip()) == ROOT
    how = (tmp_path / "how").read_text().split()
    assert how[0] == "build"
    assert how[-1] == "."
    assert "--file deploy/Dockerfile --target train --tag dragoman:x" in " ".join(how)
    assert "--build-arg=REVISION=0123abc" in how


def test_a_build_that_fails_is_no_image(programs: Path) -> None:
    put(programs, "git", "exit 1")
    put(programs, "podman", "exit 3")
    with pytest.raises(ImageNotBuilt, match="podman build failed with exit code 3"):
        build_image("serve", "dragoman:x", engine="podman", base="registry")


def test_base_images_of_debian_s_packages_need_buildah(programs: Path) -> None:
    put(programs, "git", "exit 1")
    with pytest.raises(ImageNotBuilt, match="need buildah, not docker"):
        build_image("serve", "dragoman:x", engine="docker", base="debian")


def test_buildah_s_build_has_what_this_machine_s_pip_is_told_of_its_index(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "CONFIG_FILE": os.devnull,
        "CERT": "/certificates.pem",
        "EXTRA_INDEX_URL": "file:///packages",  # not to be found in a container
        "CONSTRAINT": "/constraints.txt",
        "TIMEOUT": "7",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    put(programs, "git", "exit 1")
    found = shlex.quote(str(tmp_path / "found"))
    # The volumes are the arguments after "build --isolation=chroot --layers".
    put(
        programs,
        "buildah",
        f'{{ file="${{4#--volume=}}"; echo "$@"; exec /bin/cat "${{file%%:*}}"; }} > {found}',
    )
    build_image("serve", "dragoman:x", engine="buildah", base="registry")
    arguments, section, *settings = (tmp_path / "found").read_text().splitlines()
    assert "--volume=/certificates.pem:/certificates.pem:ro" in arguments.split()
    assert ":/etc/pip.conf:ro" in arguments.split()[3]
    assert section == "[global]"
    assert set(settings) >= {"cert = /certificates.pem", "timeout = 7"}
    assert not any("packages" in line or "constraint" in line for line in settings)


def test_what_a_step_that_fails_has_printed_is_shown(
    programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(programs, "git", "exit 1")
    put(programs, "buildah", "echo 'module.py: invalid syntax'; exit 1")
    with pytest.raises(ImageNotBuilt, match="buildah build failed with exit code 1"):
        build_image("train", "dragoman:x", engine="buildah", base="registry")
    assert "module.py: invalid syntax" in capsys.readouterr().err
