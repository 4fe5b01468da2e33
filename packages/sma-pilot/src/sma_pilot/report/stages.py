"""The page of a pilot in stages, and the same for a terminal: how each stands, and since when."""

import io
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sma_core import DatasetError
from sma_core.dataset import DatasetCard, PreparedDataset
from sma_pilot.decision.record import Decision, load_decisions
from sma_pilot.errors import RunError
from sma_pilot.plan import StagePlan
from sma_pilot.report.page import write_page
from sma_pilot.report.stages_plot import course_plot
from sma_pilot.report.svg import printable, style_sheet
from sma_pilot.report.words import VERDICTS, minus
from sma_pilot.run_folder import RunFolder
from sma_pilot.stages.look import Look, levels
from sma_pilot.stages.standing import StageStanding, Standing, State, standing
from sma_pilot.stages.windows import stage_edges

STATES: dict[State, tuple[str, str, str]] = {
    "waiting": ("\N{EN DASH}", "not started", "info"),
    "open": ("?", "under way", "inconclusive"),
    "pending": ("…", "go, waits for a signature", "inconclusive"),
    "go": ("✓", "go", "pass"),
    "no-go": ("✕", "no-go", "fail"),
    "inconclusive": ("?", "inconclusive", "inconclusive"),
    "stopped": ("✕", "stopped", "fail"),
}
"""Sign, word and status (as `words.STATUSES`) of each state."""

_WIDTH = 120


def write_stages_report(run: RunFolder, out: Path | None = None) -> Path:
    """Write the page of a pilot in stages as one self-contained HTML file.

    Parameters
    ----------
    run : RunFolder
        The pilot's own.
    out : Path, optional
        Where the page goes; ``report.html`` in the run folder by default.

    Raises
    ------
    RunError
        When the data set is not prepared, a look or a decision is damaged, or the page cannot be
        written.
    """
    try:
        card = PreparedDataset.open(run.dataset).card
    except DatasetError as error:
        raise RunError(f"{error}; run `sma-pilot prepare` again") from error
    path = run.report if out is None else out
    write_page(path, render_stages(standing(run), card, run))
    return path


def render_stages(now: Standing, card: DatasetCard, run: RunFolder) -> str:
    """Return the page as HTML. Whatever a log or a plan says is escaped."""
    environment = Environment(
        loader=PackageLoader("sma_pilot", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    sheet = resources.files("sma_pilot.report").joinpath("style.css").read_text(encoding="utf-8")
    symbol, word, meaning = VERDICTS[now.verdict]
    tone = now.verdict
    if now.verdict == "inconclusive" and now.current.state in ("open", "pending"):
        symbol, word, meaning = "…", "Under way", "Not every stage was gone through."
    decisions = {own.stage.name: _decisions(run, own) for own in now.stages}
    edges = stage_edges(now.plan, card.provenance["borders_ns"])
    return environment.get_template("stages.html.j2").render(
        plan=now.plan,
        verdict={"symbol": symbol, "word": word, "meaning": meaning, "tone": tone},
        # Alternately words, and a command to type.
        waits=now.text(run.path.name).split("`"),
        states=STATES,
        stages=[
            _stage(own, now, edges[place : place + 2], run) for place, own in enumerate(now.stages)
        ],
        timeline=_timeline(now, decisions),
        course=course_plot(now),
        style=Markup(style_sheet() + sheet),  # noqa: S704 - both are the package's own
    )


def standing_text(now: Standing, run: str) -> str:
    """Lay out for a terminal how a pilot in stages stands."""
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, color_system=None, highlight=False)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("stage", "state", "looks", "loss (interval), limit", "what became of it"):
        table.add_column(name, overflow="fold")
    for own in now.stages:
        symbol, word, _ = STATES[own.state]
        shown = own.deciding or (own.looks[-1] if own.looks else None)
        table.add_row(
            own.stage.name,
            f"{symbol} {word}",
            f"{len(own.looks)} of {len(own.stage.look_times)}",
            "" if shown is None else f"{headline_text(shown)}, {_number(shown.headline['limit'])}",
            Text(printable(own.text, 400)),
        )
    console.print(f"plan {now.plan.name} {now.plan.digest[:8]}")
    console.print(table)
    console.print(Text(now.text(run)), soft_wrap=True)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def headline_text(look: Look) -> str:
    """Return the loss at a look with its interval."""
    value, low, high = (look.headline[name] for name in ("value", "low", "high"))
    if value is None:
        return "not measured"
    if low is None or high is None:
        return _number(value)
    return f"{_number(value)} ({_number(low)} to {_number(high)})"


def _number(value: float | None) -> str:
    return "" if value is None else minus(f"{value:.3g}")


def _decisions(run: RunFolder, own: StageStanding) -> tuple[Decision, ...]:
    return load_decisions(run.at(own.stage.name)) if own.decision is not None else ()


def _stage(
    own: StageStanding, now: Standing, edges: tuple[int, ...], run: RunFolder
) -> dict[str, Any]:
    stage = own.stage
    page = run.at(stage.name).report
    return {
        "name": stage.name,
        "kind": _kind(stage),
        "since": _moment(edges[0]),
        "until": _moment(edges[1]),
        "signature": "needed" if stage.signature_required else "not needed",
        "state": own.state,
        "text": printable(own.text, 400),
        "page": f"stages/{stage.name}/report.html" if page.exists() else "",
        "looks": [
            {
                "number": number + 1,
                "until": _moment(edges[0] + round(time * (edges[1] - edges[0]))),
                "level": f"{level:.3g}",
                "taken": _taken(own.looks[number], own) if number < len(own.looks) else None,
            }
            for number, (time, level) in enumerate(
                zip(stage.look_times, levels(stage, now.plan), strict=True)
            )
        ],
    }


def _kind(stage: StagePlan) -> str:
    if stage.share is not None:
        return f"canary, {100 * stage.share:g} % of entities"
    return (
        f"shadow, {stage.speed:g} times the recorded pace" if stage.kind == "shadow" else stage.kind
    )


def _taken(look: Look, own: StageStanding) -> dict[str, Any]:
    watched = own.deciding is not None and look.number > own.deciding.number
    symbol, word, _ = VERDICTS[look.verdict]
    if look.breaches:
        said, status = "✕ safety gate breached", "fail"
    elif watched:
        said, status = "✓ watched, nothing breached", "info"
    else:
        status = {"go": "pass", "no-go": "fail"}.get(look.verdict, "inconclusive")
        said = f"{symbol} {word.lower()}"
    return {
        "said": said,
        "status": status,
        "loss": headline_text(look),
        "limit": _number(look.headline["limit"]),
        "breaches": [printable(text, 400) for text in look.breaches],
    }


def _timeline(now: Standing, decisions: dict[str, tuple[Decision, ...]]) -> list[dict[str, str]]:
    """Everything that was decided, in the order in which it was."""
    lines: list[dict[str, str]] = []
    for own in now.stages:
        name = own.stage.name
        for look in own.looks:
            taken = _taken(look, own)
            lines.append(
                {
                    "when": look.judged_at,
                    "stage": name,
                    "what": f"look {look.number} of {len(own.stage.look_times)}: {taken['said']}",
                    "status": taken["status"],
                    "why": "; ".join(taken["breaches"])
                    or f"loss {taken['loss']}, limit {taken['limit']}, level {look.alpha:.3g}, "
                    f"rows until {_moment(look.until_ns)} UTC",
                }
            )
        for decision in decisions[name]:
            symbol, word, _ = VERDICTS[decision.decision]
            against = f", against the verdict {decision.verdict}" if decision.override else ""
            lines.append(
                {
                    "when": f"{decision.time:%Y-%m-%dT%H:%M:%SZ}",
                    "stage": name,
                    "what": f"{symbol} signed {word.lower()}{against}, by "
                    f"{printable(decision.by, 200)}",
                    "status": "pass" if decision.decision == "go" else "fail",
                    "why": printable(decision.reason, 10_000),
                }
            )
    # Within a second, what a stage came to stands before who signed it.
    lines.sort(key=lambda line: line["when"])
    for line in lines:
        line["when"] = line["when"].replace("T", " ").removesuffix("Z")
    return lines


def _moment(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M")
