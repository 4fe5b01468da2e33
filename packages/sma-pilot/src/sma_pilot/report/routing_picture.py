"""When each sub-module ran: signal, score, alarms and activation on one time axis."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import groupby

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sma_pilot.judge.events import POSITIVE, nanoseconds
from sma_pilot.judge.measurements import CANDIDATE, INCUMBENT, JUDGED
from sma_pilot.report.evidence import Evidence
from sma_pilot.report.plots import WIDTH, arm_line
from sma_pilot.report.stretches import Stretch
from sma_pilot.report.svg import LIGHT, Drawing, new_figure, printable, styled

_CHANNELS = 3
_STRIP_BINS = 240
_SHADES = 10
_EVENT_ALPHA, _AHEAD_ALPHA = 0.16, 0.06

Time = NDArray[np.datetime64]


def routing_picture(evidence: Evidence, stretch: Stretch) -> Drawing:
    """Draw one stretch of the judged log.

    From the top: the channels that move most, the scores of candidate and incumbent over their
    thresholds, the rows on which each alarms, and a strip for each of the candidate's
    sub-modules, darker where it ran in more of the steps. Labelled events are shaded throughout,
    and for task ``alarm`` the horizon before each, more lightly: there an alarm is due.
    """
    rows = evidence.scene.rows
    at = slice(stretch.start, stretch.stop)
    time_ns, inside = rows.time[at], rows.label[at] > 0
    due = evidence.scene.kinds[at] == POSITIVE
    entity = int(rows.entity[stretch.start])
    name = evidence.measurements.entities[entity]
    routing = evidence.routing(name, int(time_ns[0]), int(time_ns[-1]))
    channels, signal = _signal(evidence, entity, time_ns, due, inside)
    strips = routing.select("layer", "submodule").unique().sort("layer", "submodule").rows()
    max_gap = nanoseconds(evidence.plan.log.max_gap)
    gaps = np.flatnonzero(np.diff(time_ns) > max_gap) + 1
    time = time_ns.astype("datetime64[ns]")
    heights = [0.5] * len(channels) + [1.1, 0.4] + [0.24] * len(strips)
    with styled():
        figure = new_figure(WIDTH, 0.45 + 1.12 * sum(heights))
        figure.set_layout_engine("constrained", hspace=0.02, h_pad=0.02)
        panels = list(
            figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[
                :, 0
            ]
        )
        for axes, label, values in zip(panels, channels, signal, strict=False):
            axes.plot(*_broken(time, values, gaps), color=LIGHT["ink"], linewidth=0.9)
            _label(axes, label)
        score, alarms, *lanes = panels[len(channels) :]
        _draw_scores(score, evidence, at, time, gaps)
        _draw_alarms(alarms, evidence, at, time)
        for axes, (layer, submodule) in zip(lanes, strips, strict=True):
            ran = routing.filter(pl.col("layer") == layer, pl.col("submodule") == submodule)
            _draw_strip(axes, ran, int(time_ns[0]), int(time_ns[-1]))
            _label(axes, f"layer {layer} {submodule}".replace("_", " "))
        ahead = due & ~inside
        for axes in panels:
            for mask, alpha in ((inside, _EVENT_ALPHA), (ahead, _AHEAD_ALPHA)):
                for begin, end in _runs(mask):
                    axes.axvspan(
                        time[begin],
                        time[end - 1],
                        color=LIGHT["event"],
                        alpha=alpha,
                        linewidth=0.6,
                        zorder=0.5,
                    )
            axes.spines[["bottom", "left"]].set_visible(False)
            axes.tick_params(axis="x", length=0)
        handles, _ = score.get_legend_handles_labels()
        if inside.any():
            handles.append(Patch(color=LIGHT["event"], alpha=_EVENT_ALPHA, label="labelled event"))
        if ahead.any():
            handles.append(Patch(color=LIGHT["event"], alpha=_AHEAD_ALPHA, label="its horizon"))
        panels[0].legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=4,
            borderaxespad=0.2,
        )
        last = panels[-1]
        last.set_xlim(time[0], time[-1])
        locator = AutoDateLocator(minticks=4, maxticks=9)
        last.xaxis.set_major_locator(locator)
        last.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        last.tick_params(axis="x", length=3)
    return Drawing(
        name=f"stretch-{stretch.name}",
        title=f"{stretch.title}: {printable(name)}",
        caption=_caption(stretch, time_ns, bool(strips)),
        alt=_alt(evidence, stretch, name, inside, routing),
        figure=figure,
    )


def _signal(
    evidence: Evidence,
    entity: int,
    time_ns: NDArray[np.int64],
    due: NDArray[np.bool_],
    inside: NDArray[np.bool_],
) -> tuple[list[str], list[NDArray[np.float32]]]:
    """Return the names and values [T] of the channels that tell most, or move most.

    They tell most that set the rows on which an alarm is due apart from those that are neither due
    nor in an event.
    """
    card = evidence.dataset.card
    if not card.numeric:
        return [], []
    values = _numeric(evidence, entity, time_ns)
    known = np.where(np.isnan(values), 0.0, values)
    spread = known.std(axis=0)
    usual = ~due & ~inside
    if due.any() and usual.any():
        outside = known[usual]
        shift = np.abs(known[due] - outside.mean(axis=0)).mean(axis=0)
        spread = shift / (outside.std(axis=0) + 0.1)
    order = np.argsort(-spread, kind="stable")[:_CHANNELS]
    return [printable(card.numeric[i].name, 22) for i in order], [values[:, i] for i in order]


def _numeric(evidence: Evidence, entity: int, time_ns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the scaled channels [T, C] at the given times of one entity; NaN where none is."""
    split = evidence.dataset.split(JUDGED)
    found = np.full((time_ns.size, len(evidence.dataset.card.numeric)), np.nan, dtype=np.float32)
    for ref in split.sequences:
        if ref.entity != entity:
            continue
        rows = range(ref.start, ref.stop)
        first, last = (
            ref.start
            + bisect_left(rows, moment, key=lambda row: int(split.read(row, row + 1).time[0]))
            for moment in (int(time_ns[0]), int(time_ns[-1]) + 1)
        )
        if first == last:
            continue
        part = split.read(first, last)
        place = np.searchsorted(time_ns, part.time.numpy())
        matches = time_ns[np.minimum(place, time_ns.size - 1)] == part.time.numpy()
        if part.numeric is not None:
            found[place[matches]] = part.numeric.numpy()[matches]
    return found


def _draw_scores(
    axes: Axes, evidence: Evidence, at: slice, time: Time, gaps: NDArray[np.int64]
) -> None:
    """Draw each arm's score as a multiple of its own threshold, so that one line serves both."""
    ratios = {}
    for arm in (INCUMBENT, CANDIDATE):
        threshold = evidence.threshold(arm)
        if threshold is not None and threshold > 0:
            ratios[arm] = evidence.scene.rows.scores[arm][at] / threshold
    for arm, ratio in ratios.items():
        # The incumbent's line is the wider one, and under the candidate's: both show where equal.
        style = arm_line(arm)
        style["linewidth"] = 2.8 if arm == INCUMBENT else 1.2
        axes.plot(*_broken(time, ratio, gaps), **style)
    if not ratios:
        _label(axes, "no threshold")
        return
    axes.set_ylabel("score over\nthreshold", rotation=0, ha="right", va="center")
    axes.axhline(1, color=LIGHT["ink"], linewidth=0.9)
    known = np.concatenate([ratio[~np.isnan(ratio)] for ratio in ratios.values()])
    axes.set_yscale("symlog", linthresh=1)
    highest = max(2.0, float(known.max(initial=0)))
    axes.set_ylim(0, 1.3 * highest)
    ticks = [0, 1, *(tick for tick in (3, 10, 30, 100, 1000) if tick <= highest)]
    axes.set_yticks(ticks, [f"{tick}\N{MULTIPLICATION SIGN}" for tick in ticks], fontsize=8)
    axes.minorticks_off()


def _draw_alarms(axes: Axes, evidence: Evidence, at: slice, time: Time) -> None:
    """Mark the rows on which each arm alarms: the candidate over the incumbent."""
    for height, arm in ((0.25, INCUMBENT), (0.75, CANDIDATE)):
        threshold = evidence.threshold(arm)
        if threshold is None:
            continue
        over = evidence.scene.rows.scores[arm][at] > threshold
        axes.plot(
            time[over],
            np.full(int(over.sum()), height),
            "|",
            color=LIGHT[arm],
            markersize=7,
            markeredgewidth=1.4,
        )
    axes.set_ylim(0, 1)
    _label(axes, "alarms, incumbent", "alarms, candidate")


def _draw_strip(axes: Axes, ran: pl.DataFrame, first_ns: int, last_ns: int) -> None:
    """Draw the share of steps that ran a sub-module, by time: darker is more."""
    bins = min(_STRIP_BINS, max(1, ran["time"].n_unique()))
    edges = np.linspace(first_ns, last_ns, bins + 1)
    place = np.clip(np.searchsorted(edges, ran["time"].to_numpy(), "right") - 1, 0, bins - 1)
    steps = np.bincount(place, minlength=bins)
    active = np.bincount(place, weights=ran["active"].to_numpy(), minlength=bins)
    shade = np.rint(_SHADES * active / np.maximum(steps, 1)).astype(int)
    # Neighbours of one shade are one box: a strip is some dozen boxes, not hundreds.
    boxes, colours, begin = [], [], 0
    for level, group in groupby(shade.tolist()):
        end = begin + len(list(group))
        if level:
            left, right = (edges[[begin, end]]).astype("int64").astype("datetime64[ns]")
            boxes.append((left, right))
            colours.append(to_rgba(LIGHT[CANDIDATE], level / _SHADES))
        begin = end
    axes.set(ylim=(0, 1), yticks=[])
    axes.set_facecolor(LIGHT["panel"])
    convert = axes.convert_xunits
    polygons = [
        [(convert(a), 0.08), (convert(b), 0.08), (convert(b), 0.92), (convert(a), 0.92)]
        for a, b in boxes
    ]
    axes.add_collection(
        PolyCollection(polygons, facecolors=colours, linewidths=0, antialiased=False, zorder=2)
    )


def _label(axes: Axes, *texts: str) -> None:
    """Name what a panel shows, at its left; several texts from the bottom up."""
    low, high = axes.get_ylim()
    places = [low + (high - low) * (i + 0.5) / len(texts) for i in range(len(texts))]
    axes.set_yticks(places, texts, fontsize=8.5)
    axes.tick_params(axis="y", length=0)


def _broken(
    time: Time, values: NDArray[np.floating], gaps: NDArray[np.int64]
) -> tuple[Time, NDArray[np.floating]]:
    """Break a line where the entity was silent for long."""
    return np.insert(time, gaps, np.datetime64("NaT")), np.insert(values, gaps, np.nan)


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _caption(stretch: Stretch, time_ns: NDArray[np.int64], routes: bool) -> str:
    first, last = (
        np.datetime_as_string(t.astype("datetime64[ns]"), unit="m").replace("T", " ")
        for t in (time_ns[0], time_ns[-1])
    )
    text = f"{first} to {last} UTC; {stretch.rule}. Channels are in their scaled unit."
    strips = " Strips: darker where the sub-module ran in more of the steps, empty where in none."
    return text + (strips if routes else " The candidate logged no routing decisions here.")


def _alt(
    evidence: Evidence,
    stretch: Stretch,
    name: str,
    inside: NDArray[np.bool_],
    routing: pl.DataFrame,
) -> str:
    at = slice(stretch.start, stretch.stop)
    parts = [
        f"{stretch.title}, entity {printable(name)}, {stretch.stop - stretch.start} rows, "
        f"{int(inside.sum())} of them in a labelled event."
    ]
    for arm in (CANDIDATE, INCUMBENT):
        threshold = evidence.threshold(arm)
        if threshold is not None:
            over = evidence.scene.rows.scores[arm][at] > threshold
            parts.append(f"The {arm} alarms on {int(over.sum())} rows.")
    rates = routing.group_by("layer", "submodule").agg(pl.col("active").mean())
    for layer, submodule, rate in rates.sort("layer", "submodule").rows():
        parts.append(f"Layer {layer} {submodule} ran in {rate:.0%} of the steps.")
    return " ".join(parts)
