"""The trend over looks as pictures: each figure that was watched, against its limit."""

from collections.abc import Sequence
from dataclasses import dataclass

from sma_pilot.monitor.finding import ACTIVATION, COLLAPSED, DRIFT, Finding
from sma_pilot.monitor.look import MonitorLook
from sma_pilot.plan import Plan
from sma_pilot.report.plots import WIDTH
from sma_pilot.report.svg import LIGHT, Drawing, new_figure, styled

_COLOURS = {"ok": "pass", "alarm": "fail", "open": "open"}


@dataclass(frozen=True)
class _Trend:
    """A figure to draw: the finding's name, and what stands at the axis."""

    finding: str
    label: str


def trend_plots(looks: Sequence[MonitorLook], plan: Plan) -> list[Drawing]:
    """Draw quality, drift and routing look by look.

    Parameters
    ----------
    looks : sequence of MonitorLook
        Those that were not replaced, in the order of their rows.
    plan : Plan
    """
    words = plan.quality.headline.replace("_", " ")
    drawings = [
        _draw(
            "quality",
            "Quality, look by look",
            looks,
            _Trend(f"quality/loss_{plan.quality.headline}", f"loss of {words}"),
            _Trend(f"quality/candidate_{plan.quality.headline}", f"candidate's {words}"),
        ),
        _draw(
            "behaviour",
            "Inputs and routing, look by look",
            looks,
            _Trend(DRIFT, "drift index"),
            _Trend(ACTIVATION, "activation rate"),
            _Trend(COLLAPSED, "collapsed rows"),
        ),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def _draw(name: str, title: str, looks: Sequence[MonitorLook], *trends: _Trend) -> Drawing | None:
    shown = [(trend, points) for trend in trends if (points := _points(looks, trend.finding))]
    if not shown:
        return None
    told: list[str] = []
    ticks = range(len(looks))
    with styled():
        figure = new_figure(WIDTH, 1.2 + 1.5 * len(shown))
        rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (trend, points) in zip(rows, shown, strict=True):
            for x, finding in points:
                colour = LIGHT[_COLOURS[finding.status]]
                if finding.low is not None and finding.high is not None:
                    ends = [finding.low, finding.high]
                    axes.plot([x, x], ends, color=colour, linewidth=6, alpha=0.45)
                marker = "X" if finding.status == "alarm" else "o"
                axes.plot([x], [finding.value], marker, color=colour, markersize=7)
                if finding.limit is not None:
                    axes.hlines(finding.limit, x - 0.4, x + 0.4, color=LIGHT["ink"], linewidth=1.8)
                told.append(f"{trend.label}, look {looks[x].number}: {finding.value:.3g}.")
            then = points[-1][1].at_verdict
            if then is not None:
                axes.axhline(then, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
            axes.set(ylabel=trend.label)
        rows[-1].set(
            xlim=(-0.5, len(looks) - 0.5),
            xticks=ticks,
            xticklabels=[str(look.number) for look in looks],
            xlabel="look",
        )
    return Drawing(
        name=name,
        title=title,
        caption="Dot: measured on the rows of the look; bar: its interval. Line: the limit; "
        "dashed: at the verdict. Green is fine, red (cross) an alarm, amber too little to tell. "
        "A look without a dot did not measure it.",
        alt=" ".join(told),
        figure=figure,
    )


def _points(looks: Sequence[MonitorLook], name: str) -> list[tuple[int, Finding]]:
    return [
        (x, finding)
        for x, look in enumerate(looks)
        for finding in look.findings
        if finding.name == name and finding.value is not None
    ]
