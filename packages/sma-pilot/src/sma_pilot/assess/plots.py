"""Pictures of an assessment: where error lies, when, and what running less would save."""

from itertools import pairwise

import numpy as np
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from sma_pilot.assess.answer import COVERED
from sma_pilot.assess.assessment import Assessment
from sma_pilot.assess.difficulty import Difficulty
from sma_pilot.report.plots import WIDTH, legend_above
from sma_pilot.report.svg import LIGHT, Drawing, new_figure, printable, styled

_STEPS_SHOWN = 400
_GRID = np.unique(np.concatenate([np.linspace(0, 1, 201), np.geomspace(1e-4, 0.1, 50)]))
_PERCENT = FuncFormatter(lambda x, _: f"{100 * x:g}")


def draw(assessment: Assessment) -> list[Drawing]:
    """Return the pictures in the page's order."""
    return [_coverage(assessment), _stretch(assessment), _savings(assessment)]


def _coverage(assessment: Assessment) -> Drawing:
    rate = assessment.answer.rate
    with styled():
        figure = new_figure(WIDTH, 3.8)
        axes = figure.subplots()
        for curve, colour, dashes, label in (
            (assessment.hindsight, "incumbent", (0, (4, 2)), "hardest first, in hindsight"),
            (assessment.foreseen, "candidate", "-", "hardest-looking first, beforehand"),
        ):
            axes.plot(_GRID, curve(_GRID), color=LIGHT[colour], linestyle=dashes, label=label)
        axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=0.9, label="by chance")
        axes.plot([rate, rate, 0], [0, COVERED, COVERED], color=LIGHT["ink"], linewidth=0.8)
        axes.plot([rate], [COVERED], "o", color=LIGHT["candidate"], markersize=7, zorder=5)
        axes.set(
            xlim=(0, 1),
            ylim=(0, 1.01),
            xlabel="% of the steps that run",
            ylabel="% of the error they hold",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_PERCENT)
        axes.grid()
        legend_above(axes)
    return Drawing(
        name="coverage",
        title="How much of the error lies on how few steps",
        caption="The more a line bends to the upper left, the fewer steps matter. A router has to "
        "choose beforehand: the dot is where three quarters of the error are held. What lies "
        "between the two bent lines is hard, and comes unannounced.",
        alt=f"Beforehand {100 * rate:.0f} % of the steps are needed to hold {100 * COVERED:.0f} % "
        f"of the error, in hindsight {100 * assessment.hindsight.needed(COVERED):.0f} %.",
        figure=figure,
    )


def _stretch(assessment: Assessment) -> Drawing:
    own = assessment.difficulty
    start, stop = choose_stretch(own)
    size = np.sqrt(own.error[start:stop])
    order = np.argsort(-own.foreseen, kind="stable")
    chosen = np.zeros(own.error.size, dtype=bool)
    chosen[order[: round(assessment.answer.rate * own.error.size)]] = True
    entities = assessment.dataset.card.entities
    entity = entities[own.entity[start]] if entities else "the log"
    first = np.datetime64(int(own.time[start]), "ns").astype("datetime64[m]")
    with styled():
        figure = new_figure(WIDTH, 2.9)
        axes = figure.subplots()
        steps = np.arange(size.size)
        axes.fill_between(
            steps,
            0,
            1,
            where=chosen[start:stop],
            step="mid",
            transform=axes.get_xaxis_transform(),
            color=LIGHT["candidate"],
            alpha=0.18,
            linewidth=0,
            label="would run",
        )
        axes.plot(steps, size, color=LIGHT["ink"], linewidth=0.9, label="size of the error")
        axes.axhline(
            float(np.sqrt(own.error.mean())),
            color=LIGHT["muted"],
            linewidth=0.8,
            linestyle=(0, (2, 2)),
            label="mean of the log",
        )
        axes.set(
            xlim=(0, max(1, size.size - 1)),
            xlabel=f"steps since {first} UTC",
            ylabel="error, in scales of a channel",
        )
        axes.set_ylim(bottom=0)
        legend_above(axes)
    share = float(chosen[start:stop].mean())
    return Drawing(
        name="stretch",
        title=f"An ordinary stretch: {printable(entity)}",
        caption="Of all stretches with a hard step, the one of median error. Shaded: steps that "
        "look hard enough beforehand to be among those of the answer.",
        alt=f"Error over {size.size} steps of {printable(entity)}; {100 * share:.0f} % would run.",
        figure=figure,
    )


def choose_stretch(difficulty: Difficulty) -> tuple[int, int]:
    """Return the steps of a stretch that is neither the quietest nor the wildest.

    Of unbroken stretches of 400 steps, or as long as there are, those that hold a hard step; of
    these the one of median error.
    """
    edges = np.flatnonzero(np.diff(difficulty.run)) + 1
    borders = np.concatenate([[0], edges, [difficulty.run.size]])
    longest = int(np.diff(borders).max())
    length = min(_STEPS_SHOWN, longest)
    starts = np.concatenate(
        [np.arange(low, high - length + 1, length) for low, high in pairwise(borders.tolist())]
    ).astype(np.int64)
    sums = np.concatenate([[0.0], np.cumsum(difficulty.error)])
    means = (sums[starts + length] - sums[starts]) / length
    hard = _running(difficulty.error > difficulty.error.mean(), starts, length)
    among = np.flatnonzero(hard) if hard.any() else np.arange(starts.size)
    middle = among[np.argsort(means[among], kind="stable")[among.size // 2]]
    return int(starts[middle]), int(starts[middle]) + length


def _running(hard: NDArray[np.bool_], starts: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    counts = np.concatenate([[0], np.cumsum(hard)])
    return counts[starts + length] > counts[starts]


def _savings(assessment: Assessment) -> Drawing:
    rates = np.linspace(0, 1, 21)
    costs = [assessment.costs(float(rate)) for rate in rates]
    lines = [
        ("FLOPs", [cost.flops for cost in costs], "candidate", "-"),
        ("bytes through memory", [cost.bytes for cost in costs], "baseline", (0, (4, 2))),
    ]
    if assessment.ceilings is not None:
        times = [cost.time or 0.0 for cost in costs]
        lines.append(("least time", times, "event", (0, (1, 1.5))))
    with styled():
        figure = new_figure(WIDTH, 3.2)
        axes = figure.subplots()
        for label, values, colour, dashes in lines:
            axes.plot(rates, values, color=LIGHT[colour], linestyle=dashes, label=label)
        axes.axvline(assessment.answer.rate, color=LIGHT["ink"], linewidth=1.0)
        axes.set(
            xlim=(0, 1),
            ylim=(0, 1.02),
            xlabel="% of the steps at which sub-modules run",
            ylabel="% of the costs with all on",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_PERCENT)
        axes.grid()
        legend_above(axes)
    return Drawing(
        name="savings",
        title="What running less would cost",
        caption="By the cost model, for a pass of this plan's candidate. Where the lines meet the "
        "left edge is the floor: what runs at every step, whatever is skipped. The upright line is "
        "the answer's rate.",
        alt=f"With nothing on, {100 * assessment.costs.always:.0f} % of the FLOPs remain; at the "
        f"answer's rate {100 * (1 - assessment.answer.saved):.0f} %.",
        figure=figure,
    )
