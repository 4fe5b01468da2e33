"""The course of a pilot in stages as a picture: the loss at each look, against its limit."""

from sma_pilot.report.plots import WIDTH
from sma_pilot.report.svg import LIGHT, Drawing, new_figure, styled
from sma_pilot.stages.standing import Standing


def course_plot(now: Standing) -> Drawing | None:
    """Draw the loss with its interval look by look, stage by stage; None before the first look.

    Looks to come have their place, so that a reader sees how much of the plan was gone through.
    """
    if not any(own.looks for own in now.stages):
        return None
    ticks: list[str] = []
    words: list[str] = []
    with styled():
        figure = new_figure(WIDTH, 3.2)
        axes = figure.subplots()
        for place, own in enumerate(now.stages):
            first = len(ticks)
            ticks += [str(look + 1) for look in range(len(own.stage.look_times))]
            if place % 2 == 0:
                axes.axvspan(first - 0.5, len(ticks) - 0.5, color=LIGHT["panel"], linewidth=0)
            axes.annotate(
                own.stage.name,
                ((first + len(ticks) - 1) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                color=LIGHT["muted"],
            )
            limit = own.stage.loss_limit or now.plan.quality.loss_limit
            axes.hlines(
                limit, first - 0.5, len(ticks) - 0.5, color=LIGHT["ink"], linewidth=1.8, zorder=3
            )
            for look in own.looks:
                value, low, high = (look.headline[name] for name in ("value", "low", "high"))
                where = f"{own.stage.name} look {look.number}"
                if value is None:
                    words.append(f"{where}: not measured.")
                    continue
                watched = own.deciding is not None and look.number > own.deciding.number
                colour = LIGHT["muted"] if watched else LIGHT["open"]
                if look.breaches or (look.verdict == "no-go" and not watched):
                    colour = LIGHT["fail"]
                elif look.verdict == "go" and not watched:
                    colour = LIGHT["pass"]
                x = first + look.number - 1
                if low is not None and high is not None:
                    axes.plot([x, x], [low, high], color=colour, linewidth=6, alpha=0.45)
                axes.plot([x], [value], "X" if look.breaches else "o", color=colour, markersize=7)
                words.append(
                    f"{where}: {look.verdict}, loss {value:.3g}, limit {limit:g}"
                    + (", a safety gate breached." if look.breaches else ".")
                )
        axes.axhline(0, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set(
            xlim=(-0.5, len(ticks) - 0.5),
            xticks=range(len(ticks)),
            xticklabels=ticks,
            xlabel="look",
            ylabel=f"loss of {now.plan.quality.headline.replace('_', ' ')}",
        )
    return Drawing(
        name="course",
        title="The loss at each look, stage by stage",
        caption="Dot: measured on all rows of the stage so far. Bar: its interval at the level of "
        "the look. Line: the plan's limit. Green decided go, red no-go or a breach (cross), amber "
        "left it open; grey came after the go and only watched.",
        alt=" ".join(words),
        figure=figure,
    )
