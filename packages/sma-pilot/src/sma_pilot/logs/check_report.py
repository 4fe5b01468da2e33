"""What a check found, as text, as JSON and as a page."""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sma_pilot.logs.facts import LogFacts
from sma_pilot.logs.files import printable
from sma_pilot.logs.findings import Finding
from sma_pilot.logs.leakage import Separation
from sma_pilot.logs.slices import SLICES, iso
from sma_pilot.plan import Plan

FORMAT, VERSION = "sma-pilot check", 1
_WIDTH = 120
_SHOWN_ROWS = 40


@dataclass(frozen=True)
class Table:
    """A table for people: R rows of the columns' cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def shown(self) -> tuple[tuple[str, ...], ...]:
        """The rows that a page has room for."""
        return self.rows[:_SHOWN_ROWS]

    @property
    def hidden(self) -> int:
        """Number of rows that it has not; the JSON has them all."""
        return len(self.rows) - len(self.shown)


@dataclass(frozen=True)
class CheckReport:
    """Findings and figures of a log.

    Parameters
    ----------
    plan : Plan
    findings : tuple of Finding
        Errors first.
    facts : LogFacts or None
        None when the log cannot be read.
    """

    plan: Plan
    findings: tuple[Finding, ...]
    facts: LogFacts | None

    @property
    def summary(self) -> str:
        """The outcome in one line."""
        counts = Counter(finding.level for finding in self.findings)
        if not counts["error"] and not counts["warning"]:
            return "no errors, no warnings"
        return ", ".join(
            f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}"
            for level in ("error", "warning")
        )

    def to_text(self) -> str:
        """Lay the report out for a terminal, names from the log freed of control characters."""
        stream = io.StringIO()
        console = Console(file=stream, width=_WIDTH, color_system=None, highlight=False)
        console.print(Text(f"check of {self.plan.name} {self.plan.digest[:8]}: {self.summary}\n"))
        grid = RichTable.grid(padding=(0, 1))
        for finding in self.findings:
            grid.add_row(*(Text(printable(cell)) for cell in _finding_cells(finding)))
        console.print(grid)
        for table in self.tables():
            drawn = RichTable(title=table.title, box=box.SIMPLE, title_justify="left")
            for number, column in enumerate(table.columns):
                drawn.add_column(column, justify="right" if number else "left", overflow="fold")
            for row in table.shown:
                drawn.add_row(*(Text(printable(cell)) for cell in row))
            console.print(drawn)
            if table.hidden:
                console.print(Text(f" and {table.hidden:,} more rows; --json has them all\n"))
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())

    def to_html(self) -> str:
        """Lay the report out as one page that loads nothing; names from the log are escaped."""
        environment = Environment(
            loader=PackageLoader("sma_pilot", "logs"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        return environment.get_template("check.html.j2").render(
            plan=self.plan, summary=self.summary, findings=self.findings, tables=self.tables()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report, JSON-ready."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "plan": {"name": self.plan.name, "digest": self.plan.digest},
            "ok": not any(finding.level == "error" for finding in self.findings),
            "findings": [vars(finding) for finding in self.findings],
            "figures": None if self.facts is None else _figures(self.facts),
        }

    def tables(self) -> list[Table]:
        """Return the figures as tables, in the order of reading."""
        if self.facts is None:
            return []
        figures = _figures(self.facts)
        return [
            Table(
                "Slices",
                ("slice", "from", "rows", "sequences", "labelled", "event rows", "events"),
                tuple(
                    (
                        name,
                        one["from"],
                        *(
                            f"{one[key]:,}"
                            for key in ("rows", "sequences", "labelled", "event_rows", "events")
                        ),
                    )
                    for name, one in figures["slices"].items()
                ),
            ),
            Table(
                "Entities",
                ("entity", "first", "last", *(f"{name} rows" for name in SLICES), "events"),
                tuple(
                    (
                        one["entity"],
                        one["first"],
                        one["last"],
                        *(f"{one['rows'][name]:,}" for name in SLICES),
                        f"{sum(one['events'].values()):,}",
                    )
                    for one in figures["entities"]
                ),
            ),
            Table(
                "Channels",
                (
                    *("channel", "type", "least", "mean", "greatest"),
                    *(f"missing: {name}" for name in SLICES),
                    "tells events",
                ),
                tuple(_channel_cells(one) for one in figures["channels"]),
            ),
            Table(
                "Files",
                ("file", "format", "rows", "form of the time"),
                tuple(
                    (one["file"], one["format"], f"{one['rows']:,}", one["time_form"])
                    for one in figures["files"]
                ),
            ),
        ]


def _finding_cells(finding: Finding) -> tuple[str, str, str]:
    mark = {"error": "!!", "warning": " !", "info": "  "}[finding.level]
    return f"{mark} {finding.level}", finding.topic, finding.message


def _channel_cells(one: dict[str, Any]) -> tuple[str, ...]:
    numbers = (one.get("least"), one.get("mean"), one.get("greatest"))
    if one["type"] == "categorical":
        spread = (f"{one['values']:,} values", "", "")
    else:
        spread = tuple("" if number is None else f"{number:.4g}" for number in numbers)
    missing = one.get("missing")
    shares = ("", "", "") if missing is None else tuple(_percent(missing[name]) for name in SLICES)
    area = one["tells_events"]
    return one["channel"], one["type"], *spread, *shares, "" if area is None else f"{area:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"


def _figures(facts: LogFacts) -> dict[str, Any]:
    survey = facts.reader.survey
    return {
        "rows": survey.rows,
        "rows_without_time": survey.without_time,
        "rows_without_entity": survey.without_entity,
        "rows_out_of_order": survey.out_of_order,
        "duplicates": facts.duplicates,
        "first": iso(survey.first),
        "last": iso(survey.last),
        "usual_step_ns": facts.steps.median,
        "longest_step_ns": facts.steps.longest,
        "gaps": facts.tally.gaps,
        "judged_rows_seen_in_training": facts.repeated,
        "slices": {
            name: {"from": iso(start), **counts.to_dict()}
            for name, start, counts in zip(
                SLICES, facts.borders.edges[:3], facts.tally.slices, strict=True
            )
        },
        "entities": [
            {
                "entity": name,
                "first": iso(survey.entities[name].first),
                "last": iso(survey.entities[name].last),
                "rows": dict(zip(SLICES, rows.tolist(), strict=True)),
                "events": dict(zip(SLICES, events.tolist(), strict=True)),
            }
            for name, rows, events in zip(
                facts.entities, facts.rows_of_entity, facts.events_of_entity, strict=True
            )
        ],
        "channels": [*_numeric_figures(facts), *_categorical_figures(facts)],
        "files": [
            {
                "file": file.name,
                "format": file.format,
                "rows": survey.rows_by_file.get(file.name, 0),
                "time_form": facts.reader.time_forms[file.name].name,
            }
            for file in facts.reader.files
        ],
    }


def _numeric_figures(facts: LogFacts) -> Iterator[dict[str, Any]]:
    train = facts.tally.slice_moments[0]
    best = _best_areas(facts.label_separations)
    for i, name in enumerate(facts.reader.columns.numeric):
        known = bool(train.count[i])
        yield {
            "channel": name,
            "type": "numeric",
            "least": float(train.low[i]) if known else None,
            "mean": float(train.mean[i]) if known else None,
            "greatest": float(train.high[i]) if known else None,
            "missing": {
                slice_name: 1 - int(moments.count[i]) / counts.rows if counts.rows else None
                for slice_name, moments, counts in zip(
                    SLICES, facts.tally.slice_moments, facts.tally.slices, strict=True
                )
            },
            "unusable_values": int(facts.tally.unusable[i]),
            "tells_events": best.get(name),
        }


def _categorical_figures(facts: LogFacts) -> Iterator[dict[str, Any]]:
    best = _best_areas(facts.label_separations)
    for name, vocabulary, unseen in zip(
        facts.reader.columns.categorical, facts.vocabularies, facts.unseen, strict=True
    ):
        yield {
            "channel": name,
            "type": "categorical",
            "values": len(vocabulary) - 1,
            "rows_unseen_in_training": dict(zip(SLICES, unseen.rows, strict=True)),
            "tells_events": best.get(name),
        }


def _best_areas(separations: list[Separation]) -> dict[str, float]:
    best: dict[str, float] = {}
    for one in separations:
        best[one.channel] = max(one.area, best.get(one.channel, 0.0))
    return best
