"""docs/reliability.md says what the programs of tests/load wrote down, and nothing else."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_figures_give() -> None:
    spec = importlib.util.spec_from_file_location("reliability_page", ROOT / "tools" / "reliability_page.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    files = sorted((ROOT / "docs" / "figures" / "reliability").glob("*.json"))
    figures = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    assert {each["name"] for each in figures} <= set(tool.SECTIONS)
    assert (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8") == tool.page(figures), (
        "make reliability"
    )
