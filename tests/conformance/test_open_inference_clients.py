"""Clients in other languages and environments, unmodified: Node, KServe's, and Triton's perf_analyzer.

Node needs `node` and `npm`. The others are there in `make conformance`, which installs them.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.serving import Served, serving

ROOT = Path(__file__).parents[2]
NODE_EXAMPLES = ROOT / "docs" / "examples" / "node"
CLIENTS = os.environ.get("CONFORMANCE_CLIENTS")
PATIENCE_S = 60.0


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples for Node and what they need."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node") / "examples"
    shutil.copytree(NODE_EXAMPLES, folder)
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--fetch-retries=0"]
    try:
        subprocess.run(
            ["npm", "install", *options], cwd=folder, check=True, capture_output=True, timeout=PATIENCE_S
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot install @grpc/grpc-js here: {error}")
    return folder


def client(name: str) -> Path:
    """The folder of a client that `make conformance` installs."""
    if CLIENTS is None:
        pytest.skip("make conformance installs and runs it")
    return Path(CLIENTS).resolve() / name


async def lines_of(*command: object, cwd: Path | None = None, **environment: str) -> list[Any]:
    """What a program prints, a JSON value a line."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE_S):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return [json.loads(line) for line in output.decode().splitlines()]


async def test_node_calls_dragoman_v1(served: Served, node: Path) -> None:
    address = f"127.0.0.1:{served.server.port}"
    models, translations, text, error = await lines_of(
        "node", node / "dragoman_v1.js", address, ROOT / "proto"
    )
    assert models == ["count/2", "spell/2"]
    end = "FINISH_REASON_END_OF_SEQUENCE"
    assert translations == [["seven one", end], ["four zero", end]]
    assert text == " three four five six seven eight nine zero"
    assert error == ["NOT_FOUND", "no model 'nothing'; this server has: count/2, spell/2"]


async def test_node_calls_the_open_inference_protocol(served: Served, node: Path) -> None:
    address = f"127.0.0.1:{served.server.port}"
    ready, answer, refusal, text = await lines_of("node", node / "open_inference.js", address, ROOT / "proto")
    assert ready is True
    assert answer == ["1", ["seven one", "four zero"], [10, 10]]
    assert refusal == ["3", "INVALID_ARGUMENT: parameters['beams']: is unknown;"]
    assert text == " three four five six seven eight nine zero"


async def test_kserves_client_calls(served: Served) -> None:
    python = client("kserve") / "bin" / "python"
    script = ROOT / "tests" / "conformance" / "clients" / "kserve_client.py"
    live, ready, answer, refusal = await lines_of(
        python, script, f"127.0.0.1:{served.server.port}", PYTHONPATH=""
    )
    assert (live, ready) == ([True, True], [True, False])
    assert answer == ["7", "2", ["seven one", "four zero"], [2]]
    assert refusal == "INVALID_ARGUMENT"


def skip_without_libraries(program: Path, environment: dict[str, str]) -> None:
    version = subprocess.run(
        [program, "--version"], env=environment, capture_output=True, encoding="utf-8", check=False
    )
    if version.returncode == 127:
        pytest.skip(version.stderr)


@pytest.mark.parametrize(("served_model", "text"), [("spell", "71"), ("count", "one two")])
async def test_perf_analyzer_measures_streams(
    served: Served, tmp_path: Path, served_model: str, text: str
) -> None:
    folder = client("perf_analyzer")
    libraries = f"{folder}/nvidia/cuda_runtime/lib:{os.environ.get('LD_LIBRARY_PATH', '')}"
    environment = os.environ | {"LD_LIBRARY_PATH": libraries}
    program = folder / "bin" / "perf_analyzer"
    program.chmod(0o755)
    skip_without_libraries(program, environment)
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"data": [{"text": [text]}]}))
    address = f"127.0.0.1:{served.server.port}"
    asked = [
        "-u",
        address,
        "-m",
        served_model,
        "-i",
        "grpc",
        "--async",
        "--streaming",
        "--input-data",
        str(data),
    ]
    window = [
        "--measurement-mode",
        "count_windows",
        "--measurement-request-count",
        "50",
        "-s",
        "999",
        "-r",
        "3",
    ]
    process = await asyncio.create_subprocess_exec(
        program, *asked, *window, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    async with asyncio.timeout(PATIENCE_S):
        output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    counted = re.search(r"Inference count: (\d+)[^()]*\(overhead .* compute infer (\d+) usec", output)
    assert counted, output
    assert int(counted[1]) >= 50
    assert int(counted[2]) > 0
