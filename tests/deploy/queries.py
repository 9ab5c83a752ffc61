"""Every query that deploy/ and the runbook have, and what each of them asks for, as a parser of PromQL reads it."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import yaml

__all__ = [
    "Query",
    "all_queries",
    "dashboards",
    "filled_in",
    "queries_of",
    "rules_of",
    "selectors",
    "variable_of",
]

RULES = Path("prometheus/rules/dragoman.yaml")
# Grafana's $__rate_interval is at least four scrapes.
RATE_INTERVAL = "4s"


class Query(NamedTuple):
    """Where it stands, and what it is."""

    source: str
    expression: str


def dashboards(deploy: Path) -> dict[str, Any]:
    """The committed dashboards by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((deploy / "grafana").glob("*.json"))}


def rules_of(deploy: Path) -> list[dict[str, Any]]:
    """Recording rules and alerts."""
    groups = yaml.safe_load((deploy / RULES).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries_of(dashboard: Any) -> Iterator[Query]:
    """Those of its panels and annotations."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield Query(f"{panel['title']} ({target['refId']})", target["expr"])
    for annotation in dashboard["annotations"]["list"]:
        yield Query(f"annotation {annotation['name']}", annotation["expr"])


def variable_of(variable: Any) -> tuple[str, str]:
    """What a variable asks for, and the label of it that it offers."""
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
    assert found, variable
    return found[1], found[2]


@cache  # many tests look at all of them
def all_queries(deploy: Path) -> list[Query]:
    """Of rules, dashboards, autoscalers and the runbook."""
    found = [Query(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules_of(deploy)]
    for name, dashboard in dashboards(deploy).items():
        found += [Query(f"{name}: {source}", expression) for source, expression in queries_of(dashboard)]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                found.append(Query(f"{name}: ${variable['name']}", variable_of(variable)[0]))
    for path in sorted(deploy.glob("**/*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if isinstance(document, dict) and document.get("kind") == "ScaledObject":
                for trigger in document["spec"].get("triggers", []):
                    found.append(Query(f"{path.name} {trigger.get('name')}", trigger["metadata"]["query"]))
    page = (deploy.parent / "docs" / "runbook.md").read_text()
    for block in re.findall(r"```promql\n(.*?)```", page, re.DOTALL):
        found += [Query("docs/runbook.md", line) for line in block.splitlines()]
    return found


def filled_in(expression: str) -> str:
    """The query as Grafana sends it when "All" is chosen."""
    filled = expression.replace("$__rate_interval", RATE_INTERVAL)
    filled = re.sub(r"\$(namespace|job|instance|model)\b", ".*", filled)
    assert "$" not in filled, filled
    return filled


@cache
def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """The series that a query asks for."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(filled_in(expression)), visit)
    return found
