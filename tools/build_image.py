"""Build a container image of deploy/Dockerfile: `make image`, `python tools/build_image.py --help`.

docker and podman take their base images from a registry. buildah needs neither a daemon nor privileges beyond root's;
with it the base images may be made of Debian's packages (`--base debian`), where no registry can be reached.
"""

import argparse
import ast
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

__all__ = ["BaseImagesNotMade", "ImageNotBuilt", "build_image", "buildah", "find_engine"]

ROOT = Path(__file__).parents[1]
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
TAGS = {
    "serve": f"dragoman:{VERSION}",
    "serve-cuda": f"dragoman:{VERSION}-cuda",
    "train": f"dragoman:{VERSION}-train",
}
DEBIAN = "bookworm"
PYTHON_IMAGE, BUILD_IMAGE = "localhost/debian-python:3.11", "localhost/debian-python-build:3.11"
NOT_UNPACKED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")
NOT_COPIED = ("dev", "proc", "sys", "var/cache", "var/lib/apt/lists")
PIP_SETTINGS = ("cert", "extra-index-url", "index-url", "proxy", "timeout", "trusted-host")
"""What a build takes over from the pip of this machine. Versions are pinned by deploy/requirements alone."""


class ImageNotBuilt(Exception):
    """An image cannot be built here; says why."""


class BaseImagesNotMade(ImageNotBuilt):
    """Debian's packages cannot be had."""


def find_engine() -> str:
    """The first of docker, podman and buildah that works here.

    Raises:
        ImageNotBuilt: none does.
    """
    for engine in ("docker", "podman", "buildah"):
        if shutil.which(engine) is None:
            continue
        if subprocess.run([engine, "info"], check=False, capture_output=True).returncode == 0:  # noqa: S603
            return engine
    raise ImageNotBuilt("none of docker, podman and buildah works here (Debian: apt-get install buildah)")


def buildah(storage: Path | None, *arguments: str) -> str:
    """Run buildah with its images in `storage`, by default where it has them; returns what it printed.

    Raises:
        ImageNotBuilt: it fails; it has said why.
    """
    where = [] if storage is None else ["--root", str(storage / "root"), "--runroot", str(storage / "run")]
    done = subprocess.run(["buildah", *where, *arguments], check=False, stdout=subprocess.PIPE, text=True)  # noqa: S603, S607
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise ImageNotBuilt(f"buildah {arguments[0]} failed with exit code {done.returncode}")
    return done.stdout.strip()


def build_image(target: str, tag: str, *, engine: str, base: str, storage: Path | None = None) -> None:
    """Build the stage `target` of deploy/Dockerfile and name it `tag`.

    Args:
        target: The stage.
        tag: The name of the image.
        engine: What `find_engine` returned.
        base: "registry", or "debian" for base images made of Debian's packages; those that are there are used again.
        storage: Where buildah keeps images.

    Raises:
        ImageNotBuilt: it fails.
    """
    arguments = [f"--build-arg=VERSION={VERSION}", f"--build-arg=REVISION={_revision()}"]
    arguments += ["--file", "deploy/Dockerfile", "--target", target, "--tag", tag]
    if base == "debian":
        if engine != "buildah":
            raise ImageNotBuilt(f"base images of Debian's packages need buildah, not {engine}")
        _make_base_images(storage)
        arguments += [f"--build-arg=PYTHON_IMAGE={PYTHON_IMAGE}", f"--build-arg=BUILD_IMAGE={BUILD_IMAGE}"]
        arguments += ["--pull-never"]
    if engine != "buildah":
        code = subprocess.run([engine, "build", *arguments, "."], check=False, cwd=ROOT).returncode  # noqa: S603
        if code:
            raise ImageNotBuilt(f"{engine} build failed with exit code {code}")
        return
    with tempfile.NamedTemporaryFile("w", prefix="pip-", suffix=".conf") as pip_conf:
        volumes = _write_pip_conf(Path(pip_conf.name))
        # One layer for each instruction, so that dependencies have one of their own.
        buildah(storage, "build", "--isolation=chroot", "--layers", *volumes, *arguments, str(ROOT))


def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], check=False, capture_output=True, text=True, cwd=ROOT)  # noqa: S607
    return done.stdout.strip() or "unknown"


def _write_pip_conf(path: Path) -> list[str]:
    """Write what this machine's pip is told of its index; returns the volumes that a build needs for it."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    settings: dict[str, str] = {}
    for line in listed.splitlines():  # those of the environment come first, and go before those of files
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], ast.literal_eval(value))
    kept = {name: value for name, value in settings.items() if name in PIP_SETTINGS and "file:" not in value}
    path.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in kept.items()), ""]))
    path.chmod(0o644)
    certificates = kept.get("cert")
    mounted = [f"{path}:/etc/pip.conf:ro", *([f"{certificates}:{certificates}:ro"] if certificates else [])]
    return [f"--volume={each}" for each in mounted]


def _make_base_images(storage: Path | None) -> None:
    """Make both base images of one run of mmdebstrap, unless they are there."""
    images = buildah(storage, "images", "--format", "{{.Name}}:{{.Tag}}").splitlines()
    if {PYTHON_IMAGE, BUILD_IMAGE} <= set(images):
        return
    if shutil.which("mmdebstrap") is None:
        raise BaseImagesNotMade("mmdebstrap is not installed (Debian: apt-get install mmdebstrap)")
    with tempfile.TemporaryDirectory(prefix="dragoman-base-") as folder:
        run, build = Path(folder, "run.tar"), Path(folder, "build.tar")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,ca-certificates"]
        command += ["--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude={each}" for each in NOT_UNPACKED)]
        left_out = " ".join(f"--exclude=./{each}/*" for each in NOT_COPIED)
        command += [f'--customize-hook=tar -C "$1" {left_out} -cf {run} .']
        command += [
            '--customize-hook=chroot "$1" apt-get install -qq -y --no-install-recommends g++ python3-pip'
        ]
        if subprocess.run([*command, DEBIAN, str(build)], check=False, stdout=subprocess.DEVNULL).returncode:  # noqa: S603
            raise BaseImagesNotMade("mmdebstrap failed")
        for name, archive in ((PYTHON_IMAGE, run), (BUILD_IMAGE, build)):
            container = buildah(storage, "from", "scratch")
            buildah(storage, "add", "--quiet", container, str(archive), "/")
            buildah(storage, "commit", "--quiet", "--rm", container, name)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build a container image of Dragoman.")
    parser.add_argument("--target", choices=TAGS, default="serve", help="which image (serve)")
    parser.add_argument("--tag", help="its name (dragoman:VERSION, with -cuda or -train after it)")
    parser.add_argument(
        "--engine", choices=["docker", "podman", "buildah"], help="by default the first that works"
    )
    parser.add_argument(
        "--base", choices=["registry", "debian"], help="base images: from a registry, or made of Debian's packages, "
        "which needs mmdebstrap (buildah's default)"
    )  # fmt: skip
    parser.add_argument("--storage", type=Path, metavar="DIR", help="where buildah keeps images")
    options = parser.parse_args()
    tag = options.tag or TAGS[options.target]
    try:
        engine = options.engine or find_engine()
        base = options.base or ("debian" if engine == "buildah" else "registry")
        build_image(options.target, tag, engine=engine, base=base, storage=options.storage)
    except ImageNotBuilt as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{tag} is built, by {engine}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
