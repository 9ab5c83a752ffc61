"""The Prometheus rules: valid, unit-tested one by one, and the same wherever they are read."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.deploy.queries import rules_of

RULES = Path("prometheus/rules/dragoman.yaml")
RULE_TESTS = Path("prometheus/tests/dragoman.yaml")


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian package prometheus): the rules are not checked")
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules_and_the_configuration(promtool: str, deploy: Path) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", deploy / RULES)
    run(promtool, "check", "config", deploy / "prometheus" / "prometheus.yml")


def test_the_rules_pass_their_unit_tests(promtool: str, deploy: Path) -> None:
    run(promtool, "test", "rules", deploy / RULE_TESTS)


def test_every_rule_has_a_unit_test_and_every_alert_one_in_which_it_fires(deploy: Path) -> None:
    tests = yaml.safe_load((deploy / RULE_TESTS).read_text())["tests"]
    queried = {query["expr"] for test in tests for query in test.get("promql_expr_test", [])}
    queried = {expression for expression in queried if ":" in expression and "(" not in expression}
    fired = {
        alert["alertname"]
        for test in tests
        for alert in test.get("alert_rule_test", [])
        if alert["exp_alerts"]
    }
    rules = rules_of(deploy)
    assert {rule["record"] for rule in rules if "record" in rule} == queried
    assert {rule["alert"] for rule in rules if "alert" in rule} == fired


def test_every_alert_says_how_bad_what_and_why(deploy: Path) -> None:
    for rule in rules_of(deploy):
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"critical", "warning"}
            assert set(rule["annotations"]) == {"summary", "description", "runbook"}
            assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
            assert rule["for"]


def test_every_alert_has_its_entry_in_the_runbook_and_every_entry_its_alert(deploy: Path) -> None:
    page = (deploy.parent / "docs" / "runbook.md").read_text()
    head, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    entries = dict(section.split("\n", 1) for section in sections)
    alerts = {rule["alert"]: rule for rule in rules_of(deploy) if "alert" in rule}
    assert list(entries) == list(alerts), "in the order of the rules"
    for name, text in entries.items():
        parts = re.findall(r"^\*\*(.+?)\.\*\* (.+)", text, re.MULTILINE)
        assert [part for part, _ in parts] == ["Symptom", "Means", "Look first", "Do"], name
        assert re.search(r"^```(sh|promql)\n(.+\n)+```$", text, re.MULTILINE), f"{name} has commands"
    assert "kubectl" in head
