"""The looks after a go as a page, as text for a terminal, and as JSON."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sma_pilot.judge.result import Kpi
from sma_pilot.monitor.course import Monitored
from sma_pilot.monitor.finding import COLLAPSED, DRIFT, UNSCORED, Finding
from sma_pilot.monitor.look import Chain, MonitorLook
from sma_pilot.monitor.standing import standing_of
from sma_pilot.plan import Plan
from sma_pilot.report.monitor_plot import trend_plots
from sma_pilot.report.page import write_page
from sma_pilot.report.svg import printable, style_sheet
from sma_pilot.report.words import format_number, in_sentence, kpi_label
from sma_pilot.run_folder import RunFolder

RECOMMENDATIONS = {
    "keep": ("✓", "Keep", "go"),
    "re-pilot": ("?", "Pilot again", "inconclusive"),
    "fall back": ("✕", "Fall back", "no-go"),
}
"""Sign, word and tone of each recommendation."""
STATUSES = {
    "ok": ("✓", "fine", "pass"),
    "alarm": ("✕", "alarm", "fail"),
    "open": ("?", "open", "inconclusive"),
    "not_measured": ("\N{EN DASH}", "not measured", "not_measured"),
}
"""Sign, word and class of each status of a finding."""
_LABELS = {
    UNSCORED: "Rows left unscored",
    DRIFT: "Drift of inputs",
    COLLAPSED: "Rows in a collapsed router",
    "routing/activation_rate": "Activation rate",
    "routing/collapsed_submodules": "Sub-modules that ceased to be routed",
}
_WIDTH = 120


def write_monitor_page(plan: Plan, run: RunFolder, chain: Chain) -> None:
    """Write the page of all looks as one self-contained HTML file.

    Raises
    ------
    RunError
        When it cannot be written.
    """
    if chain.looks:
        write_page(run.monitor_page, render_monitor(plan, run, chain))


def render_monitor(plan: Plan, run: RunFolder, chain: Chain) -> str:
    """Return the page as HTML. Whatever a log or a plan says is escaped."""
    environment = Environment(
        loader=PackageLoader("sma_pilot", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    sheet = resources.files("sma_pilot.report").joinpath("style.css").read_text(encoding="utf-8")
    now = standing_of(chain.standing)
    symbol, word, tone = RECOMMENDATIONS[now.recommendation]
    replaced = {look.replaces: look.number for look in chain.looks if look.replaces is not None}
    newest = chain.standing[-1]
    return environment.get_template("monitor.html.j2").render(
        plan=plan,
        run=run.path.name,
        decision=newest.decision,
        call={"symbol": symbol, "word": word, "tone": tone, "why": printable(now.summary, 1000)},
        findings=[{**_cells(own), "look": number} for number, own in now.findings],
        drift=sorted(newest.drift.items(), key=lambda item: -item[1])[:10],
        newest=newest.number,
        looks=[_look(look, replaced.get(look.number)) for look in reversed(chain.looks)],
        drawings=trend_plots(chain.standing, plan),
        printable=printable,
        style=Markup(style_sheet() + sheet),  # noqa: S704 - both are the package's own
    )


def looks_document(plan: Plan, found: Monitored) -> dict[str, Any]:
    """Return what came of a log, JSON-ready."""
    now = found.standing
    return {
        "plan": {"name": plan.name, "digest": plan.digest},
        "recommendation": now.recommendation,
        "summary": now.summary,
        "notes": list(found.notes),
        "taken": [look.to_dict() for look in found.taken],
        "looks": [
            {
                "number": look.number,
                "replaces": look.replaces,
                "since_ns": look.since_ns,
                "until_ns": look.until_ns,
                "rows": look.rows,
                "labelled_rows": look.labelled_rows,
                "recommendation": look.recommendation,
                "sha256": look.sha256,
            }
            for look in found.chain.looks
        ],
    }


def looks_text(plan: Plan, found: Monitored) -> str:
    """Lay out for a terminal what came of a log."""
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, color_system=None, highlight=False)
    console.print(Text(f"plan {plan.name} {plan.digest[:8]}"))
    for note in found.notes:
        console.print(Text(f"note: {printable(note, 400)}"), soft_wrap=True)
    for look in found.taken:
        console.print(Text(f"\n{_head(look)}"), soft_wrap=True)
        console.print(_table(look.findings))
        for finding in look.findings:
            if finding.status != "ok":
                symbol = STATUSES[finding.status][0]
                console.print(Text(f"{symbol} {printable(finding.text, 400)}"), soft_wrap=True)
    now = found.standing
    symbol, word, _ = RECOMMENDATIONS[now.recommendation]
    console.print(
        Text(f"\n{symbol} {word.upper()}: {printable(now.summary, 1000)}"), soft_wrap=True
    )
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def finding_label(finding: Finding) -> str:
    """Return what a finding is about, in words."""
    if finding.name in _LABELS:
        return _LABELS[finding.name]
    own = finding.name.split("/")[-1].startswith("candidate_")
    label = kpi_label(
        Kpi(name=finding.name, arm="candidate" if own else None, value=None, unit=finding.unit)
    )
    return f"Candidate's {in_sentence(label)}" if own else label


def moment(time_ns: int) -> str:
    """Write a time for people, to the minute."""
    return datetime.fromtimestamp(time_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M")


def _head(look: MonitorLook) -> str:
    again = "" if look.replaces is None else f", in place of look {look.replaces}"
    return (
        f"look {look.number}{again}: {look.rows:,} rows of {look.entities:,} entities, "
        f"{moment(look.since_ns)} to {moment(look.until_ns - 1)} UTC, "
        f"{look.labelled_rows:,} labelled, {look.events:,} events: {look.recommendation}"
    )


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("watched", "now", "interval", "at the verdict", "limit", ""):
        justify = "left" if name in ("watched", "") else "right"
        table.add_column(name, overflow="fold", justify=justify)
    for finding in findings:
        own = _cells(finding)
        cells = ("label", "now", "interval", "then", "limit", "status")
        table.add_row(*(Text(own[cell]) for cell in cells))
    return table


def _cells(finding: Finding) -> dict[str, Any]:
    symbol, word, tone = STATUSES[finding.status]
    number = {
        name: "" if value is None else format_number(value, finding.unit)
        for name, value in (
            ("now", finding.value),
            ("low", finding.low),
            ("high", finding.high),
            ("then", finding.at_verdict),
            ("limit", finding.limit),
        )
    }
    return {
        "label": finding_label(finding),
        "now": number["now"] or "\N{EN DASH}",
        "interval": f"{number['low']} to {number['high']}" if number["low"] else "",
        "then": number["then"],
        "limit": number["limit"],
        "status": f"{symbol} {word}",
        "tone": tone,
        "text": printable(finding.text, 400),
    }


def _look(look: MonitorLook, replaced_by: int | None) -> dict[str, Any]:
    symbol, word, tone = RECOMMENDATIONS[look.recommendation]
    tones = {"go": "pass", "no-go": "fail"}
    return {
        "number": look.number,
        "since": moment(look.since_ns),
        "until": moment(look.until_ns - 1),
        "rows": f"{look.rows:,}",
        "labelled": f"{look.labelled_rows:,}",
        "events": f"{look.events:,}",
        "said": f"{symbol} {word.lower()}",
        "tone": tones.get(tone, tone),
        "summary": printable(look.summary, 1000),
        "taken": f"{look.taken_at:%Y-%m-%d %H:%M}",
        "replaces": look.replaces,
        "replaced_by": replaced_by,
        "unknown": [printable(name) for name in look.unknown_entities[:10]],
        "files": [printable(file["file"], 200) for file in look.log["files"][:10]],
        "sha256": look.sha256,
    }
