"""The table of a study as text: for a terminal or a file, and in Markdown for the tracking page."""

import io
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from sma_eval.analysis import CONFIDENCE, ArmSummary, Estimate
from sma_eval.study import Study

_WIDE_TABLE_ONLY = ("seeds", "target", "flops/step", "us/step", "state", "steps", "best at")


def text_table(rows: Sequence[ArmSummary], study: Study) -> str:
    """Lay the table out for a terminal or a text file, with what its columns mean below it."""
    table = Table(box=None, pad_edge=False, header_style="")
    header, *cells = table_cells(rows, study)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    text = io.StringIO()
    # Wide enough for any row: a table in a file must not depend on the terminal that made it.
    Console(file=text, width=500, markup=False, highlight=False).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([*lines, "", legend(rows, study)]) + "\n"


def markdown_table(rows: Sequence[ArmSummary], study: Study) -> str:
    """Lay out the columns that an arm is judged by in Markdown, for a narrow page."""
    whole = table_cells(rows, study)
    kept = [i for i, name in enumerate(whole[0]) if name not in _WIDE_TABLE_ONLY]
    header, *cells = [[row[i].replace("|", "\\|") for i in kept] for row in whole]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *cells]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{legend(rows, study)}\n"


def table_cells(rows: Sequence[ArmSummary], study: Study) -> list[list[str]]:
    """Header and rows as text; columns that say nothing in this study are left out."""
    columns: dict[str, Callable[[ArmSummary], str]] = {"arm": lambda row: row.arm}
    if any(row.nuisance for row in rows):
        columns["nuisance"] = lambda row: row.nuisance or "-"
    columns |= {
        "seeds": lambda row: str(row.seeds),
        study.objective.metric: lambda row: _estimate(row.objective, ".4f"),
        "difference": lambda row: _estimate(row.difference, "+.4f"),
        "active": lambda row: _number(row.activation_rate, ".3f"),
        "target": lambda row: _number(row.target_rate, ".3f"),
        "flops/step": lambda row: _number(row.flops_per_step, ",.0f"),
        "of dense": lambda row: _number(row.dense_share, ".2f"),
    }
    if any(row.latency_seconds is not None for row in rows):
        columns["us/step"] = lambda row: _number(row.latency_seconds, ",.0f", 1e6)
        columns["state"] = lambda row: _number(row.state_bytes, ",.0f")
    columns |= {
        "steps": lambda row: _number(row.steps, ",.0f"),
        "best at": lambda row: _number(row.best_step, ",.0f"),
    }
    if any(row.failed for row in rows):
        columns["failed"] = lambda row: str(row.failed)
    if any(row.stopped for row in rows):
        columns["stopped"] = lambda row: str(row.stopped)
    if any(row.unfinished for row in rows):
        columns["unfinished"] = lambda row: str(row.unfinished)
    return [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]


def legend(rows: Sequence[ArmSummary], study: Study) -> str:
    """Say what the columns mean, a line each."""
    split = "validation" if study.task.test is None else study.task.test
    lines = [
        f"{study.objective.metric}: on split '{split}', mean over seeds with a {CONFIDENCE:.0%} "
        "interval (Student's t; none below two seeds).",
        f"difference: to '{rows[0].arm}', paired by seed, not corrected for the number of arms; "
        "an interval that holds 0 tells the two not apart.",
        "active: share of (step, layer, sub-module) that ran; flops/step: one forward step.",
    ]
    if any(row.latency_seconds is not None for row in rows):
        lines.append(
            "us/step: median of a streaming step, beside what else ran; state: bytes of a stream."
        )
    improving = [row.arm for row in rows if row.steps and row.best_step == row.steps]
    if improving:
        lines.append(
            f"best at: {len(improving)} of {len(rows)} arms were best at the last step of every "
            "seed, so a larger budget may change the order."
        )
    if split == "validation":
        lines.append("The same split chose the weights, so figures are a little too good.")
    if any(row.nuisance for row in rows):
        lines.append("nuisance: of the values tried, the best on validation.")
    return "\n".join(lines)


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else format(value * scale, form)


def _estimate(value: Estimate | None, form: str) -> str:
    if value is None:
        return "-"
    ends = [_number(end, form) for end in (value.low, value.high) if end is not None]
    return " ".join([_number(value.mean, form), *([f"[{', '.join(ends)}]"] if ends else [])])
