"""Write what images install, pinned and hashed, from pyproject.toml and constraints.txt: `make image-requirements`.

    python tools/image_requirements.py deploy/requirements

`uv` asks the index of packages for the hashes, and the result is NAME.txt in that folder. NAME.in, where there is one,
holds what Dragoman itself does not require. What is in LEFT_OUT comes into no image, nor does what only it needs.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LEFT_OUT", "REQUIREMENTS", "Requirements", "compile_requirements"]

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("huggingface-hub",)
"""tokenizers names it for `from_pretrained`, which Dragoman does not call, and imports it nowhere else."""
PLATFORM = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36")
"""Of the base images, Debian 12."""
HEADER = "# Written by `make image-requirements`.\n"


@dataclass(frozen=True)
class Requirements:
    """What one image installs.

    Attributes:
        extras: Dragoman's extras; None where Dragoman's requirements are not among them.
        replaced: Distributions for which NAME.in has another one.
    """

    extras: tuple[str, ...] | None
    replaced: tuple[str, ...] = ()


REQUIREMENTS = {
    "serve": Requirements(("tracing",)),
    "serve-cuda": Requirements(("tracing",), replaced=("onnxruntime",)),
    "train": Requirements(("tracing", "train")),
    "build": Requirements(None),
}


def compile_requirements(folder: Path, name: str) -> None:
    """Write NAME.txt in `folder`; keeps the versions that it has where constraints.txt says nothing of them.

    Raises:
        subprocess.CalledProcessError: there is no such version, or the index cannot be reached; uv has said so.
    """
    wanted = REQUIREMENTS[name]
    written = folder / f"{name}.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", *PLATFORM]
    command += ["--no-header", "--no-annotate", "--generate-hashes"]
    command += ["--constraints", str(ROOT / "constraints.txt"), "--output-file", str(written)]
    command += [str(each) for each in (folder / f"{name}.in",) if each.exists()]
    if wanted.extras is not None:
        command += [str(ROOT / "pyproject.toml"), *(f"--extra={extra}" for extra in wanted.extras)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as never:
        # A requirement that no platform has is left out, with all that nothing else needs.
        never.writelines(f"{each} ; sys_platform == 'never'\n" for each in (*LEFT_OUT, *wanted.replaced))
        never.flush()
        subprocess.run([*command, "--overrides", never.name], check=True, cwd=ROOT)  # noqa: S603
    written.write_text(HEADER + written.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    for each in REQUIREMENTS:
        compile_requirements(Path(sys.argv[1]), each)
