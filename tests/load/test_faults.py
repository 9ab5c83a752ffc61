"""Two of the faults, which no other test has under load."""

import json
from pathlib import Path

import pytest
from tests.load import faults


@pytest.mark.parametrize("fault", ["SIGKILL front", "disk full: the log's device"])
def test_calls_end_right_or_may_be_repeated(fault: str, tmp_path: Path) -> None:
    figures = tmp_path / "faults.json"
    assert faults.main(["--only", fault, "--callers", "2", "--json", str(figures)]) == 0, figures.read_text()
    [row] = json.loads(figures.read_text())["tables"][0]["rows"]
    assert row[0] == fault
    assert int(row[1].replace(",", "")) > 0
