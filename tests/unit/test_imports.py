"""Everything is imported by the package's name. ruff holds imports to it; this holds what stands in strings to it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = "cli|client|common|export|files|model|server"
PACKAGE = ROOT / "src" / "dragoman"
BARE = re.compile(
    rf"(?:^|[;\"'`])\s*import (?:[\w.]+, )*(?:{FOLDERS})\b"
    rf"|\bfrom (?:{FOLDERS})(?:\.\w+)* import\b"
    rf"|\b(?:run_module|import_module|files|find_spec|PackageLoader|setattr)\(\s*[\"'](?:{FOLDERS})[\"'.]"
    rf"|-m(?:[\"',]*\s+[\"']?)(?:{FOLDERS})(?:\.\w+)*[\"',\s]",
    re.MULTILINE,
)


@pytest.mark.parametrize(
    "text",
    [
        "import server",
        "'import sys, client; client.Client'",
        "'import sys, os; import client.load'",
        "from server.config import load_settings",
        "run_module('server', run_name='__main__')",
        'resources.files("model").joinpath',
        'monkeypatch.setattr("server.engine.lane.Lane", x)',
        '[sys.executable, "-m", "cli.main", "train"]',
        "python -m client.cli.main translate",
    ],
)
def test_a_bare_name_is_seen(text: str) -> None:
    assert BARE.search(text)


def test_no_text_imports_a_folder_by_its_bare_name() -> None:
    folders = [path for path in PACKAGE.iterdir() if path.is_dir() and path.is_symlink()]
    assert {path.name for path in folders} == {*FOLDERS.split("|"), "inference", "v1"}
    searched = [ROOT / name for name in ("benchmarks", "deploy", "docs", "kernels", "src", "tests", "tools")]
    files = [path for folder in (*folders, *searched) for path in folder.rglob("*") if path.is_file()]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.py"), ROOT / "Makefile"]
    kept = {".py", ".md", ".toml", ".yaml", ".json", ""}
    found = [
        f"{path}: {match.group()}"
        for path in files
        if path.suffix in kept and "__pycache__" not in path.parts and path != Path(__file__)
        for match in BARE.finditer(path.read_text(encoding="utf-8", errors="replace"))
        if path.name not in {"performance-log.md", "training-log.md"}  # what was so then
    ]
    assert found == []
