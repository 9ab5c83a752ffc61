"""What all dashboards have in common: variables, annotations, and panels of one look."""

import itertools
import json
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from grafana_foundation_sdk.builders import (
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueTextMode,
    GraphGradientMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = [
    "INSTANCES",
    "MODELS",
    "SERIES",
    "Dashboard",
    "failed_share",
    "quantile",
    "quantiles",
    "rate",
    "text_of",
]

SERIES: Final = 'namespace=~"$namespace", job=~"$job"'
"""Of series that are summed over instances."""
INSTANCES: Final = f'{SERIES}, instance=~"$instance"'
MODELS: Final = f'model=~"$model", {INSTANCES}'
FAILED: Final = "DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN"
"""Statuses that are the server's doing, as in the rules."""

WIDTH: Final = 24
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")

Query: TypeAlias = tuple[str, str]
"""An expression and its legend."""


def rate(metric: str, by: str, *, of: str = MODELS, more: str = "") -> str:
    """A counter's rate, summed `by` labels."""
    return f"sum by ({by}) (rate({metric}{{{of}{more}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "model", *, of: str = MODELS) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({share:g}, {rate(f'{metric}_bucket', f'le, {by}', of=of)})"


def quantiles(metric: str, by: str = "model", *, of: str = MODELS) -> list[Query]:
    """The quantiles that people ask for."""
    names = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return [(quantile(share, metric, by, of=of), f"p{share * 100:g} {names}") for share in (0.5, 0.95, 0.99)]


def failed_share(by: str, *, metric: str = "dragoman_requests_total", of: str = MODELS) -> str:
    """The share of calls that the server let down: 0 where none failed."""
    failed, every = rate(metric, by, of=of, more=f', code=~"{FAILED}"'), rate(metric, by, of=of)
    return f"({failed} or 0 * {every}) / ({every} > 0)"


class Dashboard:
    """A dashboard in the making: rows of panels from left to right."""

    def __init__(self, uid: str, title: str, description: str, *, one_model: bool = False) -> None:
        """With variables for what all dashboards choose by. `one_model`: a single one is chosen, not all."""
        self._ids = itertools.count(1)
        self._builder = (
            dashboard.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags(["dragoman"])
            .editable()
            .refresh("30s")
            .time("now-3h", "now")
            .timezone("browser")
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
            .with_variable(_variable("namespace", "dragoman_phase"))
            .with_variable(_variable("job", 'dragoman_phase{namespace=~"$namespace"}'))
            .with_variable(_variable("instance", f"dragoman_phase{{{SERIES}}}"))
            .with_variable(_variable("model", f"dragoman_model_info{{{INSTANCES}}}", one=one_model))
            .link(
                dashboard.DashboardLink("Dragoman")
                .type(DashboardLinkType.DASHBOARDS)
                .tags(["dragoman"])
                .include_vars(True)
                .keep_time(True)
            )
        )
        for name, expression, color in (
            (
                "new versions of models",
                _appeared("model, version", f"dragoman_model_info{{{MODELS}}}"),
                "blue",
            ),
            ("new releases", _appeared("version", f"dragoman_build_info{{{INSTANCES}}}"), "purple"),
        ):
            self._builder.annotation(
                dashboard.AnnotationQuery()
                .name(name)
                .datasource(_SOURCE)
                .enable(True)
                .icon_color(color)
                .expr(expression)
            )

    def row(self, title: str) -> None:
        """Begin a row of panels."""
        self._builder.with_row(dashboard.Row(title).id(next(self._ids)))

    def number(
        self,
        title: str,
        description: str,
        unit: str,
        *queries: Query,
        span: int = 3,
        steps: Sequence[tuple[float | None, str]] = ((None, "text"),),
        decimals: int | None = None,
    ) -> None:
        """Numbers of this moment, colored from each of `steps` on."""
        panel = (
            stat.Panel()
            .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
            .color_mode(BigValueColorMode.VALUE)
            .text_mode(BigValueTextMode.VALUE_AND_NAME if queries[0][1] else BigValueTextMode.VALUE)
            .thresholds(
                dashboard.ThresholdsConfig()
                .mode(ThresholdsMode.ABSOLUTE)
                .steps([Threshold(value=value, color=color) for value, color in steps])
            )
        )
        if decimals is not None:
            panel.decimals(decimals)
        self._add(panel, title, description, unit, queries, span, 5)

    def lines(
        self,
        title: str,
        description: str,
        unit: str,
        *queries: Query,
        span: int = 8,
        exemplars: bool = False,
        stacked: bool = False,
    ) -> None:
        """Lines over time, from zero on where they are no differences."""
        panel = (
            timeseries.Panel()
            .line_width(1)
            .fill_opacity(25 if stacked else 5)
            .gradient_mode(GraphGradientMode.NONE)
            .min(0)
            .legend(
                VizLegendOptions()
                .display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM)
                .show_legend(True)
            )
            .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        )
        self._add(panel, title, description, unit, queries, span, 8, exemplars=exemplars)

    def heat(self, title: str, description: str, unit: str, metric: str, span: int = 24) -> None:
        """How a histogram's values lie."""
        panel = heatmap.Panel().calculate(False)
        panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        query = f"sum by (le) (increase({metric}_bucket{{{MODELS}}}[$__rate_interval]))"
        self._add(panel, title, description, unit, [(query, "{{le}}")], span, 8, is_heat=True)

    def rows_of(self, title: str, description: str, query: str, span: int = 12) -> None:
        """A table of the labels of series."""
        self._add(table.Panel(), title, description, "none", [(query, "")], span, 8, is_table=True)

    def build(self) -> Any:
        """The model that Grafana reads."""
        return self._builder.build()

    def _add(
        self,
        panel: Any,
        title: str,
        description: str,
        unit: str,
        queries: Sequence[Query],
        span: int,
        height: int,
        *,
        exemplars: bool = False,
        is_heat: bool = False,
        is_table: bool = False,
    ) -> None:
        panel.id(next(self._ids)).title(title).description(description).unit(unit)
        panel.datasource(_SOURCE).span(span).height(height)
        for ref_id, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
            query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref_id)
            query.datasource(_SOURCE).exemplar(exemplars)
            if is_table:
                query.instant().format(PromQueryFormat.TABLE)
            elif is_heat:
                query.range().format(PromQueryFormat.HEATMAP)
            else:
                query.range()
            panel.with_target(query)
        self._builder.with_panel(panel)


def _variable(name: str, series: str, *, one: bool = False) -> dashboard.QueryVariable:
    variable = (
        dashboard.QueryVariable(name)
        .label(name)
        .datasource(_SOURCE)
        .query({"query": f"label_values({series}, {name})", "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
    )
    return variable if one else variable.multi(True).include_all(True).all_value(".*")


def _appeared(by: str, series: str) -> str:
    """Series that were not there two minutes ago."""
    return f"count by ({by}) ({series}) unless count by ({by}) ({series} offset 2m)"


def text_of(built: Any) -> str:
    """The file's text. What the builders have no method for is added here."""
    tree = json.loads(JSONEncoder().encode(built))
    for annotation in tree["annotations"]["list"]:
        names = ("model", "version") if "model_info" in annotation["expr"] else ("version",)
        annotation["titleFormat"] = " ".join(f"{{{{{name}}}}}" for name in names)
        annotation["step"] = "60s"
    return json.dumps(tree, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
