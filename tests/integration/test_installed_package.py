"""The wheel, installed: what it holds, and that nothing beside a script takes the place of a part of it."""

import contextlib
import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.installation import Installation, build_sdist, build_wheel, install
from tests.integration.serving import BUNDLES

ROOT = Path(__file__).parents[2]
# As files that people keep beside their scripts, and as the folders at the top of the repository.
HOSTILE = (
    *("client", "model", "server", "common", "export", "cli", "proto", "kernels", "tests", "tools"),
    *("benchmarks", "app", "config", "errors", "v1"),
)
SPELL, COUNT = (str(BUNDLES / name / "2") for name in ("spell", "count"))
SERVING = (
    ("serve", "--models", str(BUNDLES)),
    ("translate", "--bundle", SPELL, "12"),
    ("generate", "--bundle", COUNT, "one"),
    ("score", "--bundle", SPELL, "12", "one two"),
)
TRAINING = (
    ("train", "dates", "--out", "run"),
    ("report", "run"),
    ("export", "run"),
    ("verify", SPELL),
    ("evaluate", SPELL),
    ("evaluate", "localhost:1"),
    ("back-translate", SPELL, "--out", "pairs"),
    ("demo",),
    ("config", "recipe"),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name in HOSTILE:
        (folder / f"{name}.py").write_text("raise RuntimeError(f'{__file__} was imported')\n")
    return folder


@pytest.fixture(scope="module")
def client_only(wheel: Path, hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return install(wheel, tmp_path_factory.mktemp("client"), hostile)


@pytest.fixture(scope="module")
def serving(wheel: Path, hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return install(wheel, tmp_path_factory.mktemp("serve"), hostile, "serve")


@contextlib.contextmanager
def running(installation: Installation, program: str, *arguments: str) -> Iterator[str]:
    options = ["--models", str(BUNDLES), "--port", "0", "--metrics-port", "0", "--set", "logging.format=json"]
    with subprocess.Popen(
        installation.command(program, *arguments, *options),
        cwd=installation.folder,
        env=installation.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            log = []
            for line in process.stderr:
                log.append(line)
                if json.loads(line)["event"] == "serving":
                    break
            else:
                raise AssertionError(f"the server ended: {log}")
            yield f"127.0.0.1:{json.loads(line)['port']}"
            process.terminate()
            process.communicate()
            assert process.returncode == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def target(serving: Installation) -> Iterator[str]:
    with running(serving, "dragoman", "serve") as address:
        yield address


def test_the_wheel_holds_the_packages_files_once_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [record] = [name for name in names if name.endswith(".dist-info/RECORD")]
        rows = {name: digest for name, digest, _ in csv.reader(io.StringIO(archive.read(record).decode()))}
        for name in names:
            if name != record:
                digest = urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).decode().rstrip("=")
                assert rows[name] == f"sha256={digest}"
    assert rows.keys() == set(names)
    assert [name for name, count in Counter(names).items() if count > 1] == []
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"dragoman", record.partition("/")[0]}
    assert any(name.endswith("/licenses/LICENSE") for name in names)

    compiled = {"dragoman/server/execution/libdragoman_kernels.so"}
    tracked = {
        f"dragoman/{path.relative_to(ROOT / 'src' / 'dragoman')}"
        for path in files_through_links(ROOT / "src" / "dragoman")
    }
    packed = {name for name in names if name.startswith("dragoman/")}
    assert packed - compiled == tracked - compiled
    if any(map(shutil.which, ("c++", "g++", "clang++"))):
        assert compiled <= packed


def files_through_links(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            yield from files_through_links(path)
        elif path.is_file() and path.suffix != ".md":
            yield path


def test_an_editable_installation_without_links_says_what_is_wrong(source: Path, tmp_path: Path) -> None:
    """As in an sdist, in some ZIP files, and on a file system without links, where git writes a file of text."""
    program = f"from hatchling.build import build_editable; build_editable({str(tmp_path)!r})"
    link = source / "src" / "dragoman" / "cli"
    link.write_text("../../cli")
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            check=False,
            cwd=source,
            capture_output=True,
            text=True,
        )
    finally:
        link.unlink()
    assert done.returncode == 1
    assert f"LinksLost: {link} is not a link to {source / 'cli'}: " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("path", [".", ""])
def test_client_and_server_run_beside_files_of_any_name(
    serving: Installation, target: str, path: str
) -> None:
    installation = replace(serving, environment=serving.environment | {"PYTHONPATH": path})
    done = installation.run("dragoman", "translate", "--target", target, "--model", "spell", "12")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one two\n", "")
    done = installation.run("dragoman", "translate", "--bundle", SPELL, "12")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one two\n", "")


def test_a_script_beside_files_of_any_name_calls_the_server(serving: Installation, target: str) -> None:
    (serving.folder / "script.py").write_text(
        "import asyncio, sys\n"
        "from dragoman import AsyncClient, Client, DecodingOptions, Translator\n"
        "import dragoman\n"
        f"assert not dragoman.__file__.startswith({str(ROOT)!r}), dragoman.__file__\n"
        "options: DecodingOptions = {'max_tokens': 8}\n"
        "with Client(sys.argv[1]) as client:\n"
        "    print(client.translate('12', model='spell', **options)[0].text)\n"
        "async def ask():\n"
        "    async with AsyncClient(sys.argv[1]) as client:\n"
        "        print((await client.translate('34', model='spell'))[0].text)\n"
        "asyncio.run(ask())\n"
        "with Translator(sys.argv[2]) as translator:\n"
        "    print(translator.translate('56')[0].text)\n"
    )
    done = serving.run("python", "script.py", target, SPELL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one two\nthree four\nfive six\n", "")


def test_the_installed_names_are_typed(client_only: Installation, tmp_path: Path) -> None:
    lines = {
        "from dragoman import AsyncClient, Client, DecodingOptions": None,
        "def work(client: Client, other: AsyncClient, options: DecodingOptions) -> str:": None,
        "    other.transalte('x')": "attr-defined",
        "    client.translate(3, model='dates', **options)": "arg-type",
        "    return client.translate('x', model='dates')[0].text": None,
        "from dragoman import Clinet": "attr-defined",
        "wrong: DecodingOptions = {'max_token': 1}": "typeddict-unknown-key",
    }
    script = tmp_path / "typed.py"
    script.write_text("\n".join(lines))
    command = ["mypy", "--strict", "--no-error-summary", "--hide-error-context", "--cache-dir", str(tmp_path)]
    command += ["--python-executable", str(client_only.programs / "python"), "--no-color-output", str(script)]
    done = subprocess.run(
        [sys.executable, "-m", *command], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    told = [line.partition("typed.py:")[2] for line in done.stdout.splitlines()]
    expected = {number: code for number, code in enumerate(lines.values(), 1) if code}
    assert {int(line.partition(":")[0]): line.rpartition("[")[2].rstrip("]") for line in told} == expected


def test_the_server_alone_is_a_module(serving: Installation, client_only: Installation) -> None:
    with running(serving, "python", "-P", "-m", "dragoman.server") as target:
        done = client_only.run("dragoman", "models", "--target", target, "--json")
        assert done.returncode == 0
        assert {model["name"] for model in json.loads(done.stdout)} >= {"spell", "count"}


def test_every_command_of_a_client_runs_where_only_a_client_is_installed(
    client_only: Installation, target: str
) -> None:
    (client_only.folder / "inputs").write_text("12\n34\n")
    called = ["--target", target, "--model"]
    for arguments, output in (
        (["translate", *called, "spell", "12"], "one two"),
        (["generate", *called, "count", "--max-tokens", "2", "one"], " two three"),
        (["score", *called, "spell", "12", "one two"], "\t"),
        (["models", "--target", target], "spell/2"),
        (
            ["bench", *called, "spell", "--duration", "0.2", "--warm-up", "0", "--inputs", "inputs"],
            "requests/s",
        ),
        (["config", "server"], "[engine]"),
        (["--version"], "dragoman 0."),
    ):
        done = client_only.run("dragoman", *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert output in done.stdout


def test_help_and_completion_need_no_extra(client_only: Installation, target: str) -> None:
    program = (
        "import contextlib, io, typer.main\n"
        "from dragoman.cli.app import app\n"
        "from dragoman.cli.main import main\n"
        "for command in ['', *typer.main.get_command(app).commands]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "        assert main([*command.split(), '--help']) == 0\n"
        "    assert f'Usage: dragoman {command}'.rstrip() in shown.getvalue()\n"
    )
    done = client_only.run("python", "-P", "-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    for words, position, expected in (
        ("dragoman tr", "1", {"train", "translate", "translate-files"}),
        ("dragoman train da", "2", {"dates"}),
        ("dragoman config server en", "3", {"engine"}),
        (f"dragoman translate --target {target} --model s", "5", {"spell"}),
    ):
        done = client_only.run(
            "dragoman", _DRAGOMAN_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=position
        )
        assert (set(done.stdout.split()), done.stderr) == (expected, "")


def outcomes(installation: Installation, *commands: Sequence[str]) -> list[list[object]]:
    """Exit code, standard output and standard error of each command, all in one process."""
    program = (
        "import contextlib, io, json, sys\n"
        "from dragoman.cli.main import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        code = main(command)\n"
        "    print(json.dumps([code, out.getvalue(), err.getvalue()]))\n"
    )
    done = installation.run("python", "-P", "-c", program, json.dumps(commands))
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_command_without_its_extra_names_it(client_only: Installation, serving: Installation) -> None:
    needs_serve, needs_train = (
        [1, "", f"error: this needs {name}, which is not installed: pip install 'dragoman[{extra}]'\n"]
        for name, extra in (("onnxruntime", "serve"), ("torch", "train"))
    )
    assert outcomes(client_only, *SERVING) == [needs_serve] * len(SERVING)
    for installation in (client_only, serving):
        assert outcomes(installation, *TRAINING) == [needs_train] * len(TRAINING)
        assert not (installation.folder / "run").exists()
    done = client_only.run("python", "-P", "-m", "dragoman.server", "--models", str(BUNDLES))
    assert [done.returncode, done.stdout, done.stderr] == needs_serve


def test_a_translator_without_its_extra_names_it(client_only: Installation) -> None:
    done = client_only.run("python", "-P", "-c", "from dragoman import *; Translator('spell/2')")
    assert done.returncode == 1
    line = "this needs onnxruntime, which is not installed: pip install 'dragoman[serve]'"
    assert done.stderr.splitlines()[-1] == f"dragoman.common.errors.MissingExtraError: {line}"


def test_training_finds_its_recipe_and_its_pages_template(wheel: Path, hostile: Path, tmp_path: Path) -> None:
    everything = install(wheel, tmp_path, hostile, "train")
    sizes = ("training.max_steps=1", "corpus.num_train=200", "corpus.num_validation=9", "corpus.num_test=9")
    settings = [part for size in (*sizes, "model.width=16") for part in ("--set", size)]
    done = everything.run("dragoman", "train", "dates", "--out", str(tmp_path / "run"), *settings)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "<title>" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["commit"] is None
