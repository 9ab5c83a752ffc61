"""docs/operations.md names keys, events and metrics that there are."""

import re
from pathlib import Path

import pytest

from dragoman.server.fronts.grpc.front import RELOADABLE_KEYS
from dragoman.server.serving import DRAIN_KEYS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "server").rglob("*.py"))


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def names(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


def test_the_page_names_every_reloadable_key() -> None:
    listed = section("Signals").split("Reloadable keys:")[1].split("Certificates")[0]
    assert set(re.findall(r"`([a-z_.]+)`", listed)) == RELOADABLE_KEYS | DRAIN_KEYS


@pytest.mark.parametrize("event", sorted(names(section("Log").split("|---|")[1])))
def test_an_event_is_logged(event: str) -> None:
    assert f'"{event}"' in SOURCE


@pytest.mark.parametrize("metric", sorted(names(section("Which metric says what").split("|---|")[1])))
def test_a_metric_is_there(metric: str) -> None:
    if metric not in {"code", "reason", "process", "failing", "stuck"}:
        stem = metric.removesuffix("_total").removeprefix("process_")
        assert re.search(rf"\b(dragoman)?_?{stem}(_total)?\b", SOURCE), metric
