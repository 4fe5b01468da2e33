"""The tables of a study: text for people, Markdown for the tracking page, parquet for programs."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from sma_core.files import replacing
from sma_eval.analysis import CONFIDENCE, ArmSummary, Estimate
from sma_eval.records import TrialRecord
from sma_eval.study import Study

_TRIAL_SCHEMA = {
    "id": pl.String,
    "arm": pl.String,
    "policy": pl.String,
    "pool": pl.String,
    "nuisance": pl.String,
    "seed": pl.Int64,
    "status": pl.String,
    "step": pl.Int64,
    "max_steps": pl.Int64,
    "target_rate": pl.Float64,
    "validation_objective": pl.Float64,
    "test_objective": pl.Float64,
    "activation_rate": pl.Float64,
    "activation": pl.List(pl.List(pl.Float64)),
    "flops_per_step": pl.Float64,
    "dense_flops_per_step": pl.Float64,
    "latency_seconds": pl.Float64,
    "state_bytes": pl.Int64,
    "parameters": pl.Int64,
    "best_step": pl.Int64,
    "seconds": pl.Float64,
    "checkpoint": pl.String,
    "reason": pl.String,
}
_WIDE_TABLE_ONLY = ("seeds", "target", "flops/step", "us/step", "state", "steps", "best at")
_COUNTS = ("seeds", "failed", "stopped", "unfinished")
_ESTIMATES = ("objective", "difference")


def trials_frame(records: Sequence[TrialRecord], study: Study) -> pl.DataFrame:
    """One row per trial; figures are null until it finished."""
    metric = study.objective.metric
    rows = []
    for record in records:
        row = {
            "id": record.trial.id,
            "arm": record.trial.arm,
            "policy": record.trial.policy,
            "pool": record.trial.pool,
            "nuisance": record.trial.nuisance_label,
            "seed": record.trial.seed,
            "status": record.status,
            "step": record.step,
            "max_steps": record.trial.training["max_steps"],
            "target_rate": record.trial.target_rate,
            "checkpoint": record.checkpoint,
            "reason": record.reason,
        }
        if (result := record.result) is not None:
            row |= {
                "validation_objective": result.validation[metric],
                "test_objective": result.test[metric],
                "activation_rate": result.test["activation_rate"],
                "activation": [list(layer) for layer in result.activation],
                "flops_per_step": result.flops_per_step,
                "dense_flops_per_step": result.dense_flops_per_step,
                "latency_seconds": result.latency_seconds,
                "state_bytes": result.state_bytes,
                "parameters": result.parameters,
                "best_step": result.best_step,
                "seconds": result.seconds,
            }
        rows.append(row)
    return pl.DataFrame(rows, schema=_TRIAL_SCHEMA)


def arms_frame(rows: Sequence[ArmSummary]) -> pl.DataFrame:
    """One row per arm, as in the text table."""
    schema: dict[str, pl.DataType | type[pl.DataType]] = {}
    for name in ArmSummary.__dataclass_fields__:
        if name in _ESTIMATES:
            schema |= {f"{name}_{part}": pl.Float64 for part in ("mean", "low", "high")}
        else:
            text = name in ("arm", "nuisance")
            schema[name] = pl.String if text else pl.Int64 if name in _COUNTS else pl.Float64
    return pl.DataFrame([_flat(row) for row in rows], schema=schema)


def _flat(row: ArmSummary) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name in row.__dataclass_fields__:
        value = getattr(row, name)
        if name not in _ESTIMATES:
            flat[name] = value
        elif value is not None:
            flat |= {f"{name}_{part}": getattr(value, part) for part in ("mean", "low", "high")}
    return flat


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame whole or not at all."""
    with replacing(path) as partial:
        frame.write_parquet(partial)


def text_table(rows: Sequence[ArmSummary], study: Study) -> str:
    """Lay the table out for a terminal or a text file, with what its columns mean below it."""
    table = Table(box=None, pad_edge=False, header_style="")
    header, *cells = _cells(rows, study)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    text = io.StringIO()
    # Wide enough for any row: a table in a file must not depend on the terminal that made it.
    Console(file=text, width=500, markup=False, highlight=False).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([*lines, "", _legend(rows, study)]) + "\n"


def markdown_table(rows: Sequence[ArmSummary], study: Study) -> str:
    """Lay out the columns that an arm is judged by in Markdown, for a narrow page."""
    whole = _cells(rows, study)
    kept = [i for i, name in enumerate(whole[0]) if name not in _WIDE_TABLE_ONLY]
    header, *cells = [[row[i].replace("|", "\\|") for i in kept] for row in whole]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *cells]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{_legend(rows, study)}\n"


def _cells(rows: Sequence[ArmSummary], study: Study) -> list[list[str]]:
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


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else format(value * scale, form)


def _estimate(value: Estimate | None, form: str) -> str:
    if value is None:
        return "-"
    ends = [_number(end, form) for end in (value.low, value.high) if end is not None]
    return " ".join([_number(value.mean, form), *([f"[{', '.join(ends)}]"] if ends else [])])


def _legend(rows: Sequence[ArmSummary], study: Study) -> str:
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
