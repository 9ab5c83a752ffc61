"""What `make audit` makes of pip-audit's answers. One that nobody gave may not look like a clean one."""

import json
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest

AUDIT = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "audit.py"))["audit"]
CLEAN = {"name": "clean", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found on PyPI and could not be audited: ours (1.0)"}
BROKEN = {"name": "broken", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
NO_NETWORK = "Traceback\nrequests.exceptions.ConnectionError: HTTPSConnectionPool(...)"


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "said"),
    [
        ([CLEAN], "", 0, "1 of 1 packages audited, 0 vulnerabilities found"),
        ([CLEAN, BROKEN], "", 1, "broken 2.0: CVE-1, fixed in 2.1"),
        ([CLEAN, UNKNOWN], "", 0, "not audited, as the index does not have them: ours"),
        ([UNKNOWN], "", 0, "nothing was audited"),
        (None, NO_NETWORK, 0, "nothing was audited: the index of packages cannot be reached"),
        (None, "No module named pip_audit", 1, "pip-audit failed: No module named pip_audit"),
    ],
)
def test_what_is_found_fails_and_what_was_not_asked_is_said(
    capsys: pytest.CaptureFixture[str], stdout: list[dict[str, Any]] | None, stderr: str, code: int, said: str
) -> None:
    commands = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        text = "" if stdout is None else json.dumps({"dependencies": stdout, "fixes": []})
        return subprocess.CompletedProcess(command, int(bool(stderr)), text, stderr)

    assert AUDIT("constraints.txt", run) == code
    assert said in capsys.readouterr().out
    assert "constraints.txt" in commands[0]
