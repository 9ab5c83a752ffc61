"""The documentation's links lead somewhere."""

import re
import shlex
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
    context = command.make_context(words[0], words[1:])
    assert not context.args
