"""Plots of what an objective is paid with: activation against its target, and each cost.

Findings in, a `Drawing` out; None where there is nothing to draw.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from sma_eval.analysis import ArmSummary
from sma_eval.conclusion import COST_NAMES
from sma_eval.effects import policy_level, policy_levels
from sma_eval.findings import Findings
from sma_eval.rates import RATE_TOLERANCE, RateGap
from sma_eval.records import TrialRecord
from sma_eval.report.drawing import (
    MUTED,
    RULE,
    Drawing,
    faint_grid,
    key,
    markers,
    new_figure,
    palette,
    span,
    styled,
)
from sma_eval.study import Objective

_COST_AXES = {
    "flops_per_step": ("FLOPs of a step", 1.0),
    "latency_seconds": ("latency of a streaming step, µs", 1e6),
    "state_bytes": ("memory of a stream, bytes", 1.0),
}


def rates_plot(found: Findings) -> Drawing | None:
    """Draw the activation that policies reached against what they were asked for."""
    if not found.rates:
        return None
    policies = list(dict.fromkeys(gap.policy for gap in found.rates))
    pools = list(dict.fromkeys(gap.pool for gap in found.rates))
    colours, shapes = palette(policies), markers(pools)
    with styled():
        figure = new_figure(4.2)
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9)
        right.axhline(0.0, color=MUTED, linewidth=0.9)
        right.axhspan(-RATE_TOLERANCE, RATE_TOLERANCE, color=RULE, alpha=0.6, linewidth=0)
        for gap in found.rates:
            place = policies.index(gap.policy) * len(pools) + pools.index(gap.pool)
            shift = 0.008 * (place - (len(policies) * len(pools) - 1) / 2)
            _tracked(left, gap, 0.0, 0.0, colours[gap.policy], shapes[gap.pool])
            _tracked(right, gap, shift, gap.target, colours[gap.policy], shapes[gap.pool])
        edge = min(1.02, 0.1 + max(max(gap.achieved.mean, gap.target) for gap in found.rates))
        left.set(xlim=(0, edge), ylim=(0, edge), xlabel="asked for", ylabel="reached")
        off = [gap.achieved.mean - gap.target for gap in found.rates]
        right.set(xlim=(0, edge), xlabel="asked for", ylabel="reached less asked for")
        span(right, off, -1.5 * RATE_TOLERANCE, 1.5 * RATE_TOLERANCE, axis="y")
        faint_grid(left)
        faint_grid(right)
        key(figure, colours, shapes if len(pools) > 1 else None)
    return Drawing(
        name="rates",
        title="Activation: asked and reached",
        caption="Share of (step, layer, sub-module), mean over seeds with its 95 % interval. On "
        f"the line: as asked for; in the band: within {RATE_TOLERANCE:g}. On the right points of "
        "one target stand side by side.",
        alt="; ".join(
            f"{gap.arm}: asked {gap.target:g}, reached {gap.achieved.mean:.3f}"
            for gap in found.rates
        ),
        figure=figure,
    )


def fronts_plot(
    rows: Sequence[ArmSummary],
    records: Sequence[TrialRecord],
    found: Findings,
    objective: Objective,
) -> Drawing | None:
    """Draw the objective against each cost, with the arms that nothing beats in both joined."""
    if not found.fronts:
        return None
    trials = {record.trial.arm: record.trial for record in records}
    pools = list(dict.fromkeys(trial.pool for trial in trials.values()))
    colours, shapes = palette(policy_levels(records)), markers(pools)
    known = {row.arm: row for row in rows if row.objective is not None}
    with styled():
        figure = new_figure(4.6)
        panels = figure.subplots(1, len(found.fronts), squeeze=False, sharey=True)[0]
        for axes, (cost, front) in zip(panels, found.fronts.items(), strict=True):
            label, scale = _COST_AXES[cost]
            points = {
                arm: (scale * value, row.objective.mean)
                for arm, row in known.items()
                if (value := getattr(row, cost)) is not None and row.objective is not None
            }
            axes.plot(
                *zip(*(points[arm] for arm in front), strict=True),
                color=MUTED,
                linewidth=1.0,
                drawstyle="steps-post",
                zorder=2,
            )
            for arm, (x, y) in points.items():
                axes.plot(
                    *([x], [y], shapes[trials[arm].pool]),
                    color=colours[policy_level(trials[arm])],
                    markersize=8 if arm in front else 5,
                    alpha=1.0 if arm in front else 0.55,
                    zorder=4 if arm in front else 3,
                )
            axes.set_xlabel(label)
            axes.set_xlim(0, 1.08 * max(x for x, _ in points.values()))
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
            axes.locator_params(axis="x", nbins=5)
            faint_grid(axes)
        panels[0].set_ylabel(objective.metric)
        key(figure, colours, shapes if len(pools) > 1 else None)
    return Drawing(
        name="fronts",
        title=f"What {objective.metric} costs",
        caption="Each point an arm, by means over seeds. Large and joined: no other arm is at "
        "least as good in both and better in one. Neighbours may be the same within chance.",
        alt="; ".join(
            f"by {COST_NAMES[cost]}: {', '.join(arms)}" for cost, arms in found.fronts.items()
        ),
        figure=figure,
    )


def _tracked(axes: Axes, gap: RateGap, shift: float, base: float, colour: str, marker: str) -> None:
    x, low, high = gap.target + shift, gap.achieved.low, gap.achieved.high
    if low is not None and high is not None:
        axes.vlines(x, low - base, high - base, color=colour, alpha=0.45)
    axes.plot([x], [gap.achieved.mean - base], marker, color=colour, markersize=6)


def _short(value: float, _: object) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
