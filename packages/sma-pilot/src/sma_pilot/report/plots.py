"""Plots of quality and latency: plain figures in, a `Drawing` out, None when nothing was there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from sma_pilot.judge.measurements import CANDIDATE, LatencySample
from sma_pilot.judge.result import Kpi
from sma_pilot.report.svg import LIGHT, Drawing, new_figure, styled
from sma_pilot.report.words import (
    STATUSES,
    arm_label,
    format_interval,
    format_value,
    kpi_label,
    minus,
)

WIDTH = 9.4
_ARM_DASHES: dict[str, Any] = {
    "incumbent": "-",
    "incumbent_again": (0, (4, 2)),
    "candidate": "-",
    "candidate_again": (0, (4, 2)),
    "baseline": (0, (1, 1.5)),
}
# Whole per cents for the body of a distribution and ever finer steps for its tail: some 150 points
# draw any number of queries.
_LEVELS = np.unique(np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(1e-4, 0.01, 50)]))
_MOST_GROUPS = 10

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def arm_line(arm: str) -> dict[str, Any]:
    """Return the colour, dashes and weight by which `arm` is told from the others."""
    return {
        "color": LIGHT[arm],
        "linestyle": _ARM_DASHES[arm],
        "linewidth": 2.2 if arm == CANDIDATE else 1.5,
        "zorder": 4 if arm == CANDIDATE else 3,
        "label": arm_label(arm),
    }


def legend_above(axes: Axes) -> None:
    """Put the legend over the axes, where no line can run into it."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=5, borderaxespad=0.2)


def interval_plot(kpis: Sequence[Kpi]) -> Drawing | None:
    """Draw each KPI's interval against its limit; every KPI has an axis of its own unit."""
    shown = [kpi for kpi in kpis if kpi.value is not None and kpi.threshold is not None]
    if not shown:
        return None
    with styled():
        figure = new_figure(WIDTH, 0.15 + 0.8 * len(shown))
        rows = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
        for axes, kpi in zip(rows, shown, strict=True):
            _interval_row(axes, kpi)
    words = [
        f"{kpi_label(kpi)}: {format_value(kpi.value, kpi.unit)}"
        + (f", interval {format_interval(kpi)}" if kpi.interval else "")
        + f", limit {format_value(kpi.threshold, kpi.unit)}: {STATUSES[kpi.status][1]}."
        for kpi in shown
    ]
    return Drawing(
        name="intervals",
        title="What was measured, and how sure it is, against each limit",
        caption="Dot: measured. Bar: its confidence interval. Upright line: the plan's limit. The "
        "shaded side is allowed: a bar wholly within it passes, one wholly outside fails, one "
        "that crosses the limit is open.",
        alt=" ".join(words),
        figure=figure,
    )


def _interval_row(axes: Axes, kpi: Kpi) -> None:
    value, limit = kpi.value or 0.0, kpi.threshold or 0.0
    low, high = kpi.interval or (value, value)
    # The point of "no difference" gives the eye a scale.
    neutral = 1.0 if kpi.unit == "ratio" else 0.0
    points = [low, high, value, limit, neutral]
    if kpi.unit == "ratio":
        points.append(0.0)  # from nothing on, so that a length is a share
    margin = 0.06 * (max(points) - min(points)) or 1.0
    left, right = min(points) - margin, max(points) + margin
    allowed = (limit, right) if kpi.direction == "higher" else (left, limit)
    axes.axvspan(*allowed, color=LIGHT["pass"], alpha=0.13, linewidth=0)
    axes.axvline(neutral, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
    axes.axvline(limit, color=LIGHT["ink"], linewidth=1.8)
    colour = LIGHT[{"pass": "pass", "fail": "fail"}.get(kpi.status, "open")]
    axes.plot([low, high], [0, 0], color=colour, linewidth=6, alpha=0.45, solid_capstyle="butt")
    axes.plot([value], [0], "o", color=colour, markersize=7)
    axes.set(xlim=(left, right), ylim=(-1, 1), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: minus(f"{x:.4g}")))
    axes.locator_params(axis="x", nbins=8)
    axes.set_title(kpi_label(kpi))
    axes.set_title(" ".join(STATUSES[kpi.status]), loc="right", color=colour)


def trade_off_plot(
    curves: Mapping[str, Curve], operating: Mapping[str, tuple[float, float]], allowed: float
) -> Drawing | None:
    """Draw events caught against false alarms.

    Parameters
    ----------
    curves : mapping arm -> (false alarms a day and entity [G], event recall [G])
    operating : mapping arm -> (false alarms, recall)
        At the threshold that validation rows set.
    allowed : float
        False alarms a day and entity for which thresholds were set.
    """
    curves = {arm: curve for arm, curve in curves.items() if curve[0].size}
    if not curves:
        return None
    with styled():
        figure = new_figure(WIDTH, 3.6)
        axes = figure.subplots()
        for arm, (alarms, recall) in curves.items():
            axes.plot(alarms, recall, **arm_line(arm))
        for arm, point in operating.items():
            axes.plot(*point, "o", color=LIGHT[arm], markersize=8, zorder=5)
        axes.axvline(allowed, color=LIGHT["ink"], linewidth=1.2)
        axes.annotate(
            "declared",
            (allowed, 0.02),
            xycoords=axes.get_xaxis_transform(),
            xytext=(5, 0),
            textcoords="offset points",
            color=LIGHT["muted"],
            fontsize=8.5,
        )
        reached = max(float(alarms.max()) for alarms, _ in curves.values())
        declared = max([allowed, *(alarms for alarms, _ in operating.values())])
        farthest = max(1.1 * declared, min(3 * declared, 1.05 * reached))
        shown = [recall[alarms <= farthest] for alarms, recall in curves.values()]
        lowest = min(float(recall.min(initial=1.0)) for recall in shown)
        axes.set(
            xlim=(0, farthest),
            ylim=(max(0.0, np.floor(10 * lowest - 1) / 10), 1.02),
            xlabel="false alarms a day and entity, judged rows",
            ylabel="share of events caught",
        )
        axes.grid(axis="y")
        legend_above(axes)
    words = [
        f"{arm_label(arm)} catches {recall:.0%} of events at {alarms:.2f} false alarms a day"
        for arm, (alarms, recall) in operating.items()
    ]
    return Drawing(
        name="trade-off",
        title="Events caught against false alarms",
        caption="Higher is better. Each line moves one arm's threshold over the judged rows; the "
        "dot is where the threshold that validation rows set, before any judged row, puts the arm. "
        "The upright line is the rate of false alarms that it was set for. A line turns back where "
        "alarms come so close that they merge into one.",
        alt="Trade-off curves. " + "; ".join(words) + ".",
        figure=figure,
    )


def latency_plot(latency: Mapping[str, LatencySample], percentile: float) -> Drawing | None:
    """Draw the share of single-stream events served within a time, for each arm."""
    latency = {arm: sample for arm, sample in latency.items() if sample.service_ns.size}
    if not latency:
        return None
    with styled():
        figure = new_figure(WIDTH, 3.4)
        axes = figure.subplots()
        marks = []
        longest = 0.0
        for arm, sample in latency.items():
            levels = _LEVELS[1 - 1 / sample.service_ns.size >= _LEVELS]
            times = np.quantile(sample.service_ns, levels) / 1e6
            axes.plot(times, 100 * levels, drawstyle="steps-post", **arm_line(arm))
            mark = float(np.percentile(sample.service_ns, percentile)) / 1e6
            axes.plot([mark], [percentile], "o", color=LIGHT[arm], markersize=6, zorder=5)
            marks.append(f"{arm_label(arm)} {format_value(mark, 'ms')}")
            longest = max(longest, float(np.quantile(times, 0.995)))
        axes.axhline(percentile, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set(
            xscale="log",
            ylim=(0, 101),
            xlabel="service time of one event, ms (logarithmic)",
            ylabel="% of events served",
        )
        axes.set_xlim(right=1.3 * longest)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(_minor_labels(axes))
        axes.grid(axis="y")
        legend_above(axes)
    return Drawing(
        name="latency",
        title="Service time, one event at a time",
        caption=f"Further left is faster. Dots mark the {percentile:g}th percentile. The incumbent "
        "ran twice: what lies between its two lines is the noise of this machine.",
        alt=f"Distribution of service times. {percentile:g}th percentile: "
        + "; ".join(marks)
        + ".",
        figure=figure,
    )


def _minor_labels(axes: Axes) -> FuncFormatter | NullFormatter:
    """Label 2 and 5 between powers of ten when the axis spans too few of these."""
    low, high = axes.get_xlim()
    if high > 100 * low:
        return NullFormatter()
    return FuncFormatter(
        lambda x, _: f"{x:g}" if round(x / 10 ** np.floor(np.log10(x)), 6) in (2, 5) else ""
    )


def latency_by_share_plot(sample: LatencySample) -> Drawing | None:
    """Draw the candidate's service time by the share of its sub-modules that ran."""
    known = ~np.isnan(sample.active_share)
    share, service = sample.active_share[known], sample.service_ns[known] / 1e6
    if not share.size:
        return None
    levels = np.unique(share)
    if levels.size > _MOST_GROUPS:
        share = np.minimum(np.floor(share * _MOST_GROUPS), _MOST_GROUPS - 1) / _MOST_GROUPS
        share += 0.5 / _MOST_GROUPS
        levels = np.unique(share)
    groups = [service[share == level] for level in levels]
    spread = np.array([np.percentile(group, [5, 25, 50, 75, 95]) for group in groups])
    with styled():
        figure = new_figure(WIDTH, 2.9)
        axes = figure.subplots()
        x = 100 * levels
        colour = LIGHT[CANDIDATE]
        axes.vlines(x, spread[:, 0], spread[:, 4], color=colour, linewidth=1.4)
        axes.vlines(x, spread[:, 1], spread[:, 3], color=colour, linewidth=9, alpha=0.4)
        axes.plot(x, spread[:, 2], "o", color=colour, markersize=7)
        for place, group, top in zip(x, groups, spread[:, 4], strict=True):
            axes.annotate(
                f"{group.size:,}",
                (place, top),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=LIGHT["muted"],
            )
        axes.set(
            xlim=(-6, 106),
            xlabel="% of sub-modules that ran for the event",
            ylabel="service time, ms",
        )
        axes.set_ylim(bottom=0, top=1.15 * float(spread[:, 4].max()))
        axes.grid(axis="y")
    words = [
        f"{level:.0%} active: median {format_value(float(row[2]), 'ms')}"
        for level, row in zip(levels, spread, strict=True)
    ]
    return Drawing(
        name="latency-by-activation",
        title="The candidate's service time, by how much of it ran",
        caption="Dot: median. Thick bar: middle half. Thin bar: 5th to 95th percentile. The number "
        "over it counts events.",
        alt="Service time by active share. " + "; ".join(words) + ".",
        figure=figure,
    )
