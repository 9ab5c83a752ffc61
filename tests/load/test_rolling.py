"""One round of changes under load."""

import json
from pathlib import Path

from tests.load import rolling


def test_no_call_fails_while_servers_are_changed(tmp_path: Path) -> None:
    figures = tmp_path / "rolling.json"
    assert (
        rolling.main(["--rounds", "1", "--callers", "2", "--window", "0.4", "--json", str(figures)]) == 0
    ), figures.read_text()
    told = json.loads(figures.read_text())
    assert len(told["tables"][0]["rows"]) >= 3
