"""The Grafana dashboard, as far as it can be checked without Grafana; test_prometheus runs its queries."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

GRID_WIDTH = 24


@pytest.fixture(scope="module")
def dashboard(deploy: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((deploy / "grafana" / "dragoman.json").read_text())
    return loaded


def test_panels_have_their_own_id_and_place(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= GRID_WIDTH
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_every_panel_says_what_it_shows_in_which_unit(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["targets"]


def test_queries_go_through_the_variables(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "model", "instance"}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            used = set(re.findall(r"\$\{?(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables
            # A panel that ignored the choice of an instance would show another server's figures.
            assert "instance" in used
            # A window shorter than four scrapes gives gaps; only Grafana knows the scrape interval.
            assert not re.search(r"\[\d", target["expr"])
