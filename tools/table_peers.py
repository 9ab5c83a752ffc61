"""Install Ray and Spark, with dragoman and its extra `files`, into an environment of their own.

Both are large, and Spark wants an older pandas than others do. Spark also needs Java 17 or newer.
"""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = ("pandas==2.3.3", "pyspark==4.3.0", "ray[data]==2.60.0")


def main() -> None:
    """Command line: the folder of the environment."""
    folder = Path(sys.argv[1]).resolve()
    is_whole = folder / "installed"
    if is_whole.exists():
        return
    venv.create(folder, with_pip=True, clear=True)
    command = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--quiet",
        "install",
    ]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*command, *constraints, "--editable", f"{ROOT}[files]", *PEERS], check=True)  # noqa: S603
    is_whole.touch()


if __name__ == "__main__":
    main()
