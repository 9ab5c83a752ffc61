"""Looks the pinned packages up among known vulnerabilities: `python tools/audit.py constraints.txt`.

Exit code 1: a package has one. Exit code 0: none has, or nobody could be asked; then one line says so.
"""

import json
import subprocess
import sys
from typing import Any

TIMEOUT_S = 10
PIP_AUDIT = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
UNREACHABLE = ("requests.exceptions.", "urllib3.exceptions.", "ConnectionError", "Timeout")
"""In the last line of a pip-audit that could not ask the index."""


def audit(constraints: str, run: Any = subprocess.run) -> int:
    """Print what pip-audit finds; returns the exit code."""
    command = [*PIP_AUDIT, "--requirement", constraints, "--timeout", str(TIMEOUT_S), "--format", "json"]
    done = run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        if not any(sign in last for sign in UNREACHABLE):
            print(f"pip-audit failed: {last}")
            return 1
        print("nothing was audited: the index of packages cannot be reached")
        return 0
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [(package, each) for package in packages for each in package.get("vulns", [])]
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    if packages and len(skipped) == len(packages):
        print("nothing was audited: the index of packages that answers here has no advisories")
    elif skipped:
        print(f"not audited, as the index does not have them: {', '.join(skipped)}")
    num_audited = len(packages) - len(skipped)
    print(f"{num_audited} of {len(packages)} packages audited, {len(found)} vulnerabilities found")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1]))
