"""The verdict as text for a terminal: what was decided, why, and the figures of each arm."""

import io
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sma_pilot.judge.measurements import BASELINE, CANDIDATE, INCUMBENT
from sma_pilot.judge.result import Result
from sma_pilot.report.tables import arm_figures, gate_rows
from sma_pilot.report.words import STATUSES, VERDICTS, arm_label, in_sentence

_WIDTH = 120


def verdict_text(result: Result) -> str:
    """Lay the result out as plain text: verdict, reasons (what fails first), limits, figures."""
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, color_system=None, highlight=False)
    arms = [
        arm
        for arm in (INCUMBENT, CANDIDATE, BASELINE)
        if any(kpi.arm == arm for kpi in result.kpis)
    ]
    plan = f"{result.plan['name']} {result.plan['digest'][:8]}"
    meaning = VERDICTS[result.verdict][2]
    console.print(Text(f"verdict: {result.verdict.upper()}   (plan {plan})   {meaning}\n"))
    reasons = Table.grid(padding=(0, 1))
    order = list(STATUSES)
    for reason in sorted(result.reasons, key=lambda reason: order.index(reason.status)):
        reasons.add_row(f" {STATUSES[reason.status][0]}", Text(_printable(reason.text)))
    console.print(reasons)
    if result.more_data is not None:
        console.print(Text(f"\n{_printable(result.more_data.text)}"))
    console.print()
    console.print(_gates(result, arms))
    console.print(_figures(result, arms))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _gates(result: Result, arms: list[str]) -> Table:
    """Lay out what the plan limits, each beside its limit."""
    table = _table("limit of the plan", [*arms, "compared", "interval", "limit"])
    table.add_column("status", no_wrap=True)
    for row in gate_rows(result, arms):
        cells = [row["label"], *row["by_arm"], row["value"], row["interval"], row["limit"]]
        mark, status = STATUSES[row["status"]]
        table.add_row(*(Text(_printable(cell)) for cell in cells), f"{mark} {status}")
    return table


def _figures(result: Result, arms: list[str]) -> Table:
    """Lay out what was measured, a row each and a column an arm."""
    table = _table("figure", arms)
    table.add_column("unit", no_wrap=True)
    for group in arm_figures(result, arms):
        table.add_section()
        for row in group["rows"]:
            table.add_row(*(Text(cell) for cell in _figure_cells(group["title"], row)))
    return table


def _figure_cells(group: str, row: dict[str, Any]) -> list[str]:
    label = f"{group}: {in_sentence(row['label'])}"
    return [_printable(label), *(cell["value"] for cell in row["cells"]), row["unit"]]


def _table(first: str, numbers: list[str]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(arm_label(name), justify="right", no_wrap=True)
    return table


def _printable(text: str) -> str:
    """Keep names that come from a log from steering the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
