"""The Grafana dashboards, as far as they can be checked without Grafana; test_prometheus runs their queries."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.queries import all_queries, dashboards, queries_of, selectors
from tools.dashboards.__main__ import DEPLOY, generated

GRID_WIDTH = 24
NAMES = ("compare-versions", "model", "service")


@pytest.fixture(params=NAMES)
def dashboard(request: pytest.FixtureRequest) -> Any:
    return dashboards(DEPLOY)[request.param]


def test_what_is_committed_is_what_the_code_writes(deploy: Path) -> None:
    written = dict(generated())
    differing = [str(path) for path, text in written.items() if path.read_text() != text]
    assert not differing, "make dashboards"
    assert {path.stem for path in written if path.suffix == ".json"} == set(dashboards(deploy)) == set(NAMES)


def test_panels_have_their_own_id_and_place(dashboard: Any) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        left, top = place.get("x", 0), place.get("y", 0)
        assert left + place["w"] <= GRID_WIDTH
        for x in range(left, left + place["w"]):
            for y in range(top, top + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_rows_are_whole(dashboard: Any) -> None:
    width: dict[int, int] = {}
    for panel in dashboard["panels"]:
        top = panel["gridPos"].get("y", 0)
        width[top] = width.get(top, 0) + panel["gridPos"]["w"]
    assert set(width.values()) == {GRID_WIDTH}


def test_every_panel_says_what_it_shows_in_which_unit(dashboard: Any) -> None:
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["targets"]


def test_the_first_row_of_the_service_says_whether_all_is_well(deploy: Path) -> None:
    first, *rest = dashboards(deploy)["service"]["panels"]
    titles = [panel["title"] for panel in rest]
    assert first["type"] == "row"
    assert titles[:7] == [
        "Firing alerts", "Error budget left", "Ready and desired", "p99 and its objective", "Waiting", "Slots in use",
        "Worst pod",
    ]  # fmt: skip
    assert {panel["gridPos"]["y"] for panel in rest[:7]} == {1}
    causes = [panel["title"] for panel in rest if panel["type"] == "row"]
    assert causes[:7] == [
        "Traffic", "Queue", "Batch", "Tokens", "CPU and throttling", "Memory against its limit", "Versions",
    ]  # fmt: skip


def test_queries_go_through_the_variables(dashboard: Any) -> None:
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "namespace", "job", "instance", "model"}
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert all(target["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for target in targets)
    for source, expression in queries_of(dashboard):
        used = set(re.findall(r"\$\{?(\w+)", expression)) - {"__rate_interval"}
        assert used <= variables
        # A window shorter than four scrapes gives gaps; only Grafana knows the scrape interval.
        assert not re.search(r"\[\d", expression), source
        for selector in selectors(expression):
            name = selector.name
            assert name
            chosen = {matcher.name for matcher in selector.matchers.matchers}
            if name.startswith("dragoman:objective_"):
                continue
            # A panel that ignored a choice would show another server's figures.
            assert "namespace" in chosen, (source, name)
            if name.startswith(("dragoman_", "dragoman:", "process_")):
                assert {"job", "instance"} <= chosen, (source, name)


def test_every_query_is_promql(deploy: Path) -> None:
    found = all_queries(deploy)
    assert len(found) > 150
    for _source, expression in found:
        # The last of them has no series of its own: vector(0.995).
        assert selectors(expression) or expression.startswith("vector(")
