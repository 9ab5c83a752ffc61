"""Write the dashboards and the Operator's rules of deploy/, or with --check fail where they are not what is committed.

python -m tools.dashboards [--check]
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from tools.dashboards import comparison, model, service
from tools.dashboards.panels import text_of

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "dragoman.yaml"
RULE_OBJECT = """\
# The rules of deploy/prometheus/rules as an object of the Prometheus Operator. Written by `make dashboards`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: dragoman
spec:
"""


def generated() -> Iterator[tuple[Path, str]]:
    """Each generated file with its text."""
    for name, dashboard in (
        ("service", service.dashboard()),
        ("model", model.dashboard()),
        ("compare-versions", comparison.dashboard()),
    ):
        yield DEPLOY / "grafana" / f"{name}.json", text_of(dashboard)
    rules = RULES.read_text(encoding="utf-8").splitlines()
    indented = "".join(f"  {line}".rstrip() + "\n" for line in rules)
    yield DEPLOY / "components" / "monitoring" / "prometheus_rule.yaml", RULE_OBJECT + indented


def main() -> None:
    """Exit code 1: a file is not what it should be, with --check."""
    others = []
    for path, text in generated():
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            others.append(str(path.relative_to(DEPLOY.parent)))
    if others:
        sys.exit(f"not what `make dashboards` writes: {', '.join(others)}")


if __name__ == "__main__":
    main()
