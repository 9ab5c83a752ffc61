"""The Prometheus rules: valid, unit-tested one by one, and the same wherever they are read."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path("prometheus/rules/dragoman.yaml")
RULE_TESTS = Path("prometheus/tests/dragoman.yaml")
RULE_OBJECT = Path("components/monitoring/prometheus_rule.yaml")


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian package prometheus): the rules are not checked")
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def rules_of(deploy: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((deploy / RULES).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_promtool_accepts_the_rules_and_the_configuration(promtool: str, deploy: Path) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", deploy / RULES)
    run(promtool, "check", "config", deploy / "prometheus" / "prometheus.yml")


def test_the_rules_pass_their_unit_tests(promtool: str, deploy: Path) -> None:
    run(promtool, "test", "rules", deploy / RULE_TESTS)


def test_every_rule_has_a_unit_test_and_every_alert_one_in_which_it_fires(deploy: Path) -> None:
    tests = yaml.safe_load((deploy / RULE_TESTS).read_text())["tests"]
    queried = {query["expr"] for test in tests for query in test.get("promql_expr_test", [])}
    fired = {
        alert["alertname"]
        for test in tests
        for alert in test.get("alert_rule_test", [])
        if alert["exp_alerts"]
    }
    rules = rules_of(deploy)
    assert {rule["record"] for rule in rules if "record" in rule} == queried - {"ALERTS"}
    assert {rule["alert"] for rule in rules if "alert" in rule} == fired


def test_every_alert_says_how_bad_what_and_why(deploy: Path) -> None:
    for rule in rules_of(deploy):
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"critical", "warning"}
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["for"]


def test_the_operators_object_holds_the_same_rules(deploy: Path) -> None:
    rule_object = yaml.safe_load((deploy / RULE_OBJECT).read_text())
    assert rule_object["apiVersion"] == "monitoring.coreos.com/v1"
    assert rule_object["kind"] == "PrometheusRule"
    rules = yaml.safe_load((deploy / RULES).read_text())
    assert rule_object["spec"] == rules, f"make {RULE_OBJECT} again; its first lines say how"
