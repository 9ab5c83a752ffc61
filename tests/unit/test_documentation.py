"""The documentation's links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from dragoman.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT)
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[a-z]*/README.md"))
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULE = ["-m", "dragoman"]
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages() -> None:
    assert {Path("README.md"), Path("docs/performance.md"), Path("deploy/README.md")} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def commands_of(page: Path) -> list[list[str]]:
    """Every `dragoman` command of a page's shell blocks, as words."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(re.split(r"\s[<>|&]", line)[0], comments=True) for line in lines]
    modules = [
        each[place + 2 :] for each in words for place in range(len(each)) if each[place : place + 2] == MODULE
    ]
    return modules + [each[1:] for each in words if each[:1] == ["dragoman"]]


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, id=f"{page}: {' '.join(words)}") for page in PAGES for words in commands_of(page)],
)
def test_the_parser_accepts_every_command_in_the_documentation(words: list[str]) -> None:
    program = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert words == ["--help"]
        return
    command = program.commands[words[0]]  # type: ignore[attr-defined]  # a group of commands
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    context = command.make_context(words[0], rest)
    assert not context.args


def test_every_benchmark_that_is_named_is_run_as_a_module() -> None:
    """As `python benchmarks/engine.py` it would not find the package `benchmarks`."""
    pages = [*PAGES, Path("Makefile"), *(path.relative_to(ROOT) for path in ROOT.glob("benchmarks/*.py"))]
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    assert re.findall(r"python3? benchmarks/\S+", text) == []
    named = set(re.findall(r"python3? -m benchmarks\.(\w+)", text))
    modules = {path.stem for path in ROOT.glob("benchmarks/*.py")}
    packages = {path.parent.name for path in ROOT.glob("benchmarks/*/__main__.py")}
    assert named <= modules | packages
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", "--help"],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("folder", ["cli", "server"])
def test_the_page_of_a_folder_names_what_is_in_it_and_nothing_else(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", text))
    places = {path for path in (ROOT / folder).rglob("*") if path.is_dir() or path.suffix == ".py"}
    known = {f"{path.relative_to(ROOT / folder)}{'/' * path.is_dir()}" for path in places}
    unknown = {name for name in named if not any(f"/{each}".endswith(f"/{name}") for each in known)}
    assert {name for name in unknown if not (ROOT / name).exists()} == set()
    first = {each for each in known if each.rstrip("/").count("/") == 0}
    assert first - {"__init__.py", "__pycache__/"} <= named


def test_every_decision_has_a_number_of_its_own() -> None:
    pages = sorted(ROOT.glob("docs/adr/*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    assert numbers == list(range(1, len(pages) + 1))
    titles = [page.read_text(encoding="utf-8").splitlines()[0] for page in pages]
    assert [title.split(".")[0] for title in titles] == [f"# {number}" for number in numbers]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parts[:2] != ("docs", "performance-log.md")], ids=str
)
def test_every_module_that_a_page_names_is_there(page: Path) -> None:
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    modules = {f"/{path.relative_to(ROOT)}" for folder in folders for path in folder.rglob("*.py")}
    named = re.findall(r"`([a-z_][\w/]*\.py)`", (ROOT / page).read_text(encoding="utf-8"))
    unknown = [name for name in named if not any(module.endswith(f"/{name}") for module in modules)]
    assert [name for name in unknown if not (ROOT / name).exists()] == []


def test_code_that_a_page_shows_of_a_file_is_in_that_file() -> None:
    """A block that begins with the path of a file may leave lines of it out."""
    shown = [
        (path, block)
        for page in PAGES
        for path, block in re.findall(
            r"```\w+\n(?:#|//) (docs/\S+)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
        )
    ]
    assert {"docs/examples/tables/ray_data.py", "docs/examples/tables/spark.py"} <= {
        path for path, _ in shown
    }
    for path, block in shown:
        lines = iter((ROOT / path).read_text(encoding="utf-8").splitlines())
        missing = [line for line in block.splitlines() if line and line not in lines]
        assert missing == [], path
