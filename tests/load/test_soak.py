"""The soak in small: each answer is the one that an engine gave alone."""

import json
from pathlib import Path

from tests.load import soak


def test_mixed_calls_get_the_answers_that_they_get_alone_and_nothing_is_left(tmp_path: Path) -> None:
    figures = tmp_path / "soak.json"
    arguments = ["--calls", "400", "--cases", "60", "--processes", "1", "--json", str(figures)]
    assert soak.main(arguments) == 0, figures.read_text()
    told = json.loads(figures.read_text())
    assert told["holds"]
    assert told["bounds"]
    [kinds] = [table for table in told["tables"] if table["title"].startswith("Right")]
    assert sum(int(count) for _, count in kinds["rows"]) > 300
