"""Write the versions installed in this environment as a constraints file for plain pip."""

import subprocess
import sys
from pathlib import Path

HEADER = """\
# Versions this project is developed and tested with: pip install --constraint constraints.txt ...
# Written by `make lock`. torch carries no local version, so that any build of it fits, CPU or CUDA.
"""

if __name__ == "__main__":
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable", "--exclude", "setuptools"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603
    pins = [line.split("+")[0] for line in lines if "==" in line]
    Path(sys.argv[1]).write_text(HEADER + "\n".join(pins) + "\n", encoding="utf-8")
