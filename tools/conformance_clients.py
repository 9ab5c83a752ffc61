"""Install clients of the Open Inference Protocol that cannot share the project's environment.

KServe's client wants older versions of protobuf and psutil. perf_analyzer comes in Triton's wheels for Linux on x86-64:
from 2.51 on they need a newer C library than Debian 12 has. It also needs Debian's package libb64-0d.
"""

import subprocess
import sys
import venv
from pathlib import Path

KSERVE = "kserve==0.21.0"
PERF_ANALYZER = ("tritonclient==2.50.0", "nvidia-cuda-runtime-cu12==12.9.79")


def _pip(python: Path | str, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True)  # noqa: S603


def main() -> None:
    """Command line: the folder to install to."""
    folder = Path(sys.argv[1]).resolve()
    kserve, perf_analyzer = folder / "kserve", folder / "perf_analyzer"
    if not kserve.exists():
        venv.create(kserve, with_pip=True)
        _pip(kserve / "bin" / "python", "install", KSERVE)
    if not perf_analyzer.exists():
        wheels = (
            "--platform",
            "manylinux1_x86_64",
            "--platform",
            "manylinux2014_x86_64",
            "--only-binary=:all:",
        )
        _pip(sys.executable, "install", "--target", str(perf_analyzer), "--no-deps", *wheels, *PERF_ANALYZER)


if __name__ == "__main__":
    main()
