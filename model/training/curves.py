"""Curves of a training as SVG to stand in a page, in the page's own colours and type."""

import dataclasses
import html
import io
import re

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dragoman.model.training.history import History, Series

__all__ = ["Chart", "draw_charts"]

# Colours to draw in stand for the page's, so that a curve follows its light and dark scheme.
_INK, _MUTED, _GRID, _CARD = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
_HUES = ("#0a0a11", "#0a0a12", "#0a0a13")
_PAGE_COLOURS = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _CARD: "var(--card)",
    **{hue: f"var(--hue-{number})" for number, hue in enumerate(_HUES, start=1)},
}
_SIZE_INCHES = (4.8, 3.0)  # letters of 9 points are read on a phone, where this fills the width
_MAX_MARKED_POINTS = 40
_TRANSLATED = "Greedy, on a sample of the validation split."
_QUALITY = {  # title, what a curve is, caption
    "bleu": ("Validation BLEU, %", "BLEU", _TRANSLATED),
    "exact_match": ("Validation, exact match, %", "exact match", _TRANSLATED),
    "chrf": ("Validation chrF, %", "chrF", _TRANSLATED),
    "bits_per_byte": ("Validation, bits per byte", "bits per byte", "On the start of the validation split."),
}
_ENTROPY_KINDS = {
    "encoder": "encoder",
    "decoder": "decoder",
    "cross": "decoder to source",
}


@dataclasses.dataclass(frozen=True)
class Chart:
    """Axes with curves, ready for a page."""

    title: str
    caption: str
    svg: str  # markup, with what it shows in words for who does not see it


@dataclasses.dataclass(frozen=True)
class _Curve:
    series: Series
    label: str
    hue: str = _HUES[0]
    opacity: float = 1.0
    marks_best: bool = False


def draw_charts(history: History) -> list[Chart]:
    """The curves of all that was measured; none of what was not."""
    charts = [
        _loss_chart(history),
        *_quality_charts(history),
        _chart(history, [_Curve(history.get("learning_rate"), "learning rate")], "Learning rate", ""),
        _gradient_chart(history),
        _chart(
            history,
            [_Curve(history.get("tokens_per_second"), "tokens/s")],
            "Throughput, tokens/s",
            "Without padding, validation left out.",
            from_zero=True,
        ),
        *(_entropy_chart(history, kind, what) for kind, what in _ENTROPY_KINDS.items()),
    ]
    return [chart for chart in charts if chart]


def _loss_chart(history: History) -> Chart | None:
    smoothing = history.recipe.training.label_smoothing
    training = "with dropout" + (f" and label smoothing {smoothing:g}" if smoothing else "")
    curves = [
        _Curve(history.get("loss"), "training", _HUES[0], opacity=0.75),
        _Curve(history.get("validation_loss"), "validation", _HUES[1], marks_best=True),
    ]
    caption = f"Training loss is {training}, validation loss without: the two do not compare as they stand."
    return _chart(history, curves, "Loss, nats a token", caption)


def _quality_charts(history: History) -> list[Chart | None]:
    best = "The star is the checkpoint of lowest validation loss."
    charts = []
    for measure, (title, label, caption) in _QUALITY.items():
        curve = _Curve(history.get(f"validation_sample_{measure}"), label, _HUES[1], marks_best=True)
        charts.append(_chart(history, [curve], title, f"{caption} {best}"))
    return charts


def _gradient_chart(history: History) -> Chart | None:
    level = history.recipe.training.max_gradient_norm
    curve = _Curve(history.get("gradient_norm"), "gradient norm")
    caption = f"Before clipping; the dashed line is the level it is clipped to, {level:g}." if level else ""
    return _chart(history, [curve], "Gradient norm", caption, level=level or None, logarithmic=True)


def _entropy_chart(history: History, kind: str, what: str) -> Chart | None:
    pattern = re.compile(rf"attention_entropy/{kind}_(\d+)")
    layers = {int(match[1]): name for name in history.series if (match := pattern.fullmatch(name))}
    curves = [
        _Curve(history.get(name), f"layer {layer + 1}", _HUES[2], opacity=(index + 1) / len(layers))
        for index, (layer, name) in enumerate(sorted(layers.items()))
    ]
    caption = "Mean over heads and queries: 0 is all weight on one token. The deeper a layer, the stronger its line."
    return _chart(history, curves, f"Attention entropy, {what}, nats", caption, from_zero=True)


def _chart(
    history: History,
    curves: list[_Curve],
    title: str,
    caption: str,
    *,
    level: float | None = None,
    logarithmic: bool = False,
    from_zero: bool = False,
) -> Chart | None:
    curves = [curve for curve in curves if curve.series]
    if not curves:
        return None
    figure = Figure(figsize=_SIZE_INCHES, facecolor="none", layout="constrained")
    axes = figure.add_subplot()
    if logarithmic:
        axes.set_yscale("log", subs=(2, 5))
    words = [title]
    for curve in curves:
        _draw(axes, curve)
        words.append(_in_words(curve))
        if curve.marks_best and (best := _best(history, curve.series)):
            axes.plot(
                *best, "*", markersize=13, color=_INK, label=f"best checkpoint, {best[1]:.4g}", zorder=4
            )
            words.append(f"best checkpoint at step {best[0]:,}, {best[1]:.4g}")
    if level is not None:
        axes.axhline(level, color=_MUTED, linestyle="--", linewidth=1)
        words.append(f"clipped to {level:g}")
    for number, step in enumerate(history.resumed_at):
        label = "resumed" if number == 0 else None
        axes.axvline(step, color=_MUTED, linestyle=":", linewidth=1.2, label=label)
        words.append(f"resumed at step {step:,}")
    if from_zero:
        axes.set_ylim(bottom=0)
    _style(axes)
    return Chart(title, caption, _to_svg(figure, "; ".join(words)))


def _draw(axes: Axes, curve: _Curve) -> None:
    marker = "o" if len(curve.series.steps) <= _MAX_MARKED_POINTS else ""
    axes.plot(
        curve.series.steps,
        curve.series.values,
        color=curve.hue,
        alpha=curve.opacity,
        linewidth=1.4,
        marker=marker,
        markersize=3,
        label=curve.label,
    )


def _best(history: History, series: Series) -> tuple[int, float] | None:
    step = history.best_step
    value = None if step is None else series.at(step)
    return None if step is None or value is None else (step, value)


def _in_words(curve: _Curve) -> str:
    first, last = curve.series.values[0], curve.series.values[-1]
    return (
        f"{curve.label} from {first:.4g} at step {curve.series.steps[0]:,} "
        f"to {last:.4g} at step {curve.series.steps[-1]:,}"
    )


def _style(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.grid(color=_GRID, linewidth=0.7)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0, which="both")
    plain = FuncFormatter(lambda value, _: f"{value:,.6g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("step", color=_MUTED, size=9)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 2 if len(labels) > 4 else 1
        axes.legend(
            handles,
            labels,
            facecolor=_CARD,
            edgecolor="none",
            fontsize=9,
            labelcolor=_INK,
            ncols=columns,
        )


def _to_svg(figure: Figure, words: str) -> str:
    """Markup of `figure` without what only a file of its own needs."""
    file = io.StringIO()
    # Only rcParams say these two; the context puts them back. Text stays text, in the page's own type, and the
    # same figure gives the same names.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": words}):
        FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(
        r' id="[A-Za-z][\w.]*_\d+"', "", body
    )  # nothing refers to these, and each figure has the same
    body = re.sub(r"font-family: [^;]*; ", "", body)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would hold for the whole page
    for drawn, of_page in _PAGE_COLOURS.items():
        body = body.replace(drawn, of_page)
    label = html.escape(words)
    return (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view_box[0]} role="img" aria-label="{label}">'
        f"{body.strip()}"
    )
