"""The figures of an assessment as tables, ready to print on a page or a terminal."""

from dataclasses import dataclass

import numpy as np

from sma_pilot.assess.answer import percent
from sma_pilot.assess.assessment import HARDEST, Assessment


@dataclass(frozen=True)
class Table:
    """A table: what it shows, the head of its columns, and its rows as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(assessment: Assessment) -> list[Table]:
    """Return the tables in the order of reading."""
    return [_rates(assessment), _hardest(assessment), _runs(assessment), _forecasts(assessment)]


def _rates(assessment: Assessment) -> Table:
    timed = assessment.ceilings is not None
    against = assessment.savings[0].incumbent_flops is not None
    columns = ["sub-modules run on", "hold of the error", "FLOPs", "bytes"]
    columns += ["least time"] if timed else []
    columns += ["FLOPs, of the incumbent's"] if against else []
    rows = []
    for saving in assessment.savings:
        mark = " (answer)" if saving.rate == assessment.answer.rate else ""
        covered = float(assessment.foreseen(np.array(saving.rate)))
        cells = [percent(saving.rate) + mark, percent(covered)]
        cells += [percent(saving.flops), percent(saving.bytes)]
        cells += [_share(saving.time)] if timed else []
        cells += [_share(saving.incumbent_flops)] if against else []
        rows.append(tuple(cells))
    return Table("Costs by rate of activation, of all on", tuple(columns), tuple(rows))


def _hardest(assessment: Assessment) -> Table:
    shares = np.array(HARDEST)
    hindsight, foreseen = assessment.hindsight(shares), assessment.foreseen(shares)
    return Table(
        "Share of the error on the hardest steps",
        ("steps", "in hindsight", "chosen beforehand", "by chance"),
        tuple(
            (percent(share), percent(known), percent(seen), percent(share))
            for share, known, seen in zip(HARDEST, hindsight, foreseen, strict=True)
        ),
    )


def _runs(assessment: Assessment) -> Table:
    runs = assessment.runs
    return Table(
        "Steps over the mean error",
        ("share of steps", "runs", "mean length", "by chance", "longest"),
        (
            (
                percent(runs.rate),
                f"{runs.count:,}",
                f"{runs.mean_length:.2f}",
                f"{runs.by_chance:.2f}",
                f"{runs.longest:,}",
            ),
        ),
    )


def _forecasts(assessment: Assessment) -> Table:
    own = assessment.difficulty
    whole = own.mean_errors["centre"]
    rows = []
    for name, label in own.labels.items():
        error = own.mean_errors[name]
        explained = "" if whole == 0 else percent(1 - error / whole)
        mark = " (used)" if name == own.best else ""
        rows.append((label + mark, f"{error:.4g}", explained))
    return Table(
        "Cheap forecasts on held-out rows",
        ("forecast", "mean squared error", "explains of the variance"),
        tuple(rows),
    )


def _share(share: float | None) -> str:
    return "not measured" if share is None else percent(share)
