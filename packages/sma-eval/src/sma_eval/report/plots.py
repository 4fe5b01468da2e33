"""Plots of the objective: every arm, what each factor does, and the two together.

Findings in, a `Drawing` out; None where there is nothing to draw.
"""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from sma_eval.analysis import Estimate, chosen_trials, mean_interval, result_of
from sma_eval.effects import Difference, policy_level, policy_levels
from sma_eval.findings import Findings
from sma_eval.records import TrialRecord
from sma_eval.report.drawing import (
    BETTER,
    INK,
    MUTED,
    OPEN,
    WORSE,
    Drawing,
    faint_grid,
    key,
    new_figure,
    palette,
    span,
    styled,
)
from sma_eval.study import Objective

MOST_ROWS = 60
"""Lines of a plot at most: a longer list is a table."""
_ROW = 0.25  # inches
_VERDICT_COLOURS = {
    "better": BETTER,
    "worse": WORSE,
    "not distinguishable": OPEN,
    "too few seeds": OPEN,
}


def arms_plot(records: Sequence[TrialRecord], objective: Objective) -> Drawing | None:
    """Draw the objective of each arm: every seed, their mean, and its interval."""
    chosen = {arm: own for arm, own in chosen_trials(records, objective).items() if own}
    if not chosen:
        return None
    values = {
        arm: [result_of(record).test[objective.metric] for record in own]
        for arm, own in chosen.items()
    }
    sign = 1.0 if objective.mode == "min" else -1.0
    shown = sorted(values, key=lambda arm: sign * statistics.fmean(values[arm]))[:MOST_ROWS]
    colours = palette(policy_levels(records))
    with styled():
        figure = new_figure(0.8 + _ROW * len(shown))
        axes = figure.subplots()
        reference = next(iter(values))
        axes.axvline(
            statistics.fmean(values[reference]), color=MUTED, linewidth=0.9, linestyle=(0, (2, 2))
        )
        for row, arm in enumerate(shown):
            colour = colours[policy_level(chosen[arm][0].trial)]
            _interval(axes, mean_interval(values[arm]), row, colour)
            axes.plot(
                *(values[arm], [row] * len(values[arm]), "o"),
                markersize=4.5,
                markerfacecolor="white",
                markeredgecolor=colour,
                zorder=4,
            )
        axes.set(yticks=range(len(shown)), yticklabels=shown, xlabel=objective.metric)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        points = [value for arm in shown for value in values[arm]]
        span(axes, points)
        faint_grid(axes, "x")
    better = "larger" if objective.mode == "max" else "smaller"
    left_out = "" if len(shown) == len(values) else f" The best {len(shown)} of {len(values)} arms."
    return Drawing(
        name="arms",
        title="Every arm, and what chance does to it",
        caption=f"Rings: seeds. Diamond and bar: their mean and its 95 % interval, cut off at the "
        f"edge where it is wider than the plot. Best first; a {better} {objective.metric} is "
        f"better. Dashed: {reference}, which the others are compared with.{left_out}",
        alt="; ".join(
            f"{arm}: {objective.metric} {statistics.fmean(values[arm]):.4f}" for arm in shown
        ),
        figure=figure,
    )


def effects_plot(found: Findings, objective: Objective) -> Drawing | None:
    """Draw each factor's differences with their intervals against none."""
    families = {
        "policies": found.policies,
        "pools": found.pools,
        "policy and pool together": found.interactions,
    }
    shown = {name: own[:MOST_ROWS] for name, own in families.items() if own}
    if not shown:
        return None
    heights = [0.6 + len(own) for own in shown.values()]
    with styled():
        figure = new_figure(0.55 * len(shown) + 0.4 + _ROW * sum(heights))
        rows = figure.subplots(
            len(shown), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights}
        )[:, 0]
        for axes, (name, own) in zip(rows, shown.items(), strict=True):
            axes.axvline(0.0, color=INK, linewidth=0.9)
            for row, difference in enumerate(own):
                colour = _VERDICT_COLOURS[difference.verdict]
                _interval(axes, difference.estimate, row, colour)
            axes.set(yticks=range(len(own)), yticklabels=[d.what for d in own])
            axes.set_ylim(len(own) - 0.4, -0.6)
            axes.set_title(f"{name}, against {own[0].against}")
            faint_grid(axes, "x")
        span(rows[-1], [d.estimate.mean for own in shown.values() for d in own], 0.0)
        rows[-1].set_xlabel(f"difference in {objective.metric}")
        key(figure, {"better": BETTER, "worse": WORSE, "not distinguishable": OPEN})
    return Drawing(
        name="effects",
        title="What each factor does",
        caption="Differences paired by seed, with 95 % intervals, cut off at the edge where they "
        "are wider than the plot. Policies as a mean over the pools, pools as a mean over the "
        "policies. Together: by how much a policy's difference changes with the pool; on the line "
        "where the two add up.",
        alt="; ".join(_said(d) for own in shown.values() for d in own),
        figure=figure,
    )


def interaction_plot(records: Sequence[TrialRecord], objective: Objective) -> Drawing | None:
    """Draw the objective over the pools, one line for each policy: parallel where they add up."""
    cells: dict[tuple[str, str], Estimate] = {}
    for own in chosen_trials(records, objective).values():
        if own:
            values = [result_of(record).test[objective.metric] for record in own]
            trial = own[0].trial
            cells[policy_level(trial), trial.pool] = mean_interval(values)
    pools = list(dict.fromkeys(record.trial.pool for record in records))
    levels = [
        level for level in policy_levels(records) if any((level, pool) in cells for pool in pools)
    ]
    if len(levels) < 2 or len(pools) < 2:
        return None
    colours = palette(policy_levels(records))
    spread = min(0.5, 0.08 * (len(levels) - 1))
    with styled():
        figure = new_figure(4.2)
        axes = figure.subplots()
        for i, level in enumerate(levels):
            offset = spread * (i / max(1, len(levels) - 1) - 0.5)
            known = [
                (x, cells[level, pool]) for x, pool in enumerate(pools) if (level, pool) in cells
            ]
            x = [place + offset for place, _ in known]
            axes.plot(x, [e.mean for _, e in known], "-D", color=colours[level], markersize=5)
            for place, (_, estimate) in zip(x, known, strict=True):
                if estimate.low is not None and estimate.high is not None:
                    axes.vlines(
                        place, estimate.low, estimate.high, color=colours[level], alpha=0.45
                    )
        axes.set(xticks=range(len(pools)), ylabel=objective.metric)
        axes.set_xticklabels([name.replace(" + ", "\n+ ") for name in pools], color=INK)
        axes.set_xlim(-0.5, len(pools) - 0.5)
        span(axes, [e.mean for e in cells.values()], axis="y")
        faint_grid(axes, "y")
        key(figure, {level: colours[level] for level in levels})
    return Drawing(
        name="interaction",
        title="Policy and pool together",
        caption="Mean over seeds with its 95 % interval, cut off at the edge where it is wider "
        "than the plot. Lines that run in parallel: the pools rank the same whatever the policy.",
        alt="; ".join(f"{p} with {q}: {e.mean:.4f}" for (p, q), e in cells.items()),
        figure=figure,
    )


def _interval(axes: Axes, estimate: Estimate, row: int, colour: str) -> None:
    if estimate.low is not None and estimate.high is not None:
        axes.plot(
            [estimate.low, estimate.high],
            [row, row],
            color=colour,
            linewidth=4,
            alpha=0.35,
            solid_capstyle="butt",
        )
    axes.plot([estimate.mean], [row], "D", color=colour, markersize=5.5, zorder=3)


def _said(difference: Difference) -> str:
    return f"{difference.what}: {difference.estimate.mean:+.4f}, {difference.verdict}"
