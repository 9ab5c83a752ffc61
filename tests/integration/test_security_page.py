"""The commands of docs/security.md, as they stand there."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.child_server import ENVIRONMENT, ROOT, ports, running
from tests.integration.serving import PATIENCE_S

DRAGOMAN = f"{sys.executable} -m dragoman"


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=ENVIRONMENT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_commands_lead_to_an_answer(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    setup, use = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    serve, translate = use.splitlines()
    run(re.sub(r"^dragoman ", f"{DRAGOMAN} ", setup, flags=re.MULTILINE), tmp_path)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    options = {
        "--tls-cert": "security.tls_certificate",
        "--tls-key": "security.tls_key",
        "--tokens-file": "security.tokens_file",
    }
    words = shlex.split(serve)
    assert words[:4] == ["dragoman", "serve", "--models", "models"]
    given = dict(zip(words[4::2], words[5::2], strict=True))
    assert set(given) == set(options)
    settings = [
        part for name, path in given.items() for part in ("--set", f"{options[name]}={tmp_path / path}")
    ]
    with running(*ports(), *settings) as server:
        port = server.wait_for("serving")["port"]
        assert [event for event in server.events if event["event"] == "loose_permissions"] == []
        asked = translate.replace("dragoman ", f"{DRAGOMAN} ", 1).replace("dates", "spell")
        asked = asked.replace('"3. Oktober 1990"', f"12 --target localhost:{port}")
        assert run(asked, tmp_path) == "one two\n"
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(PATIENCE_S)
