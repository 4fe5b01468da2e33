"""Classes on the page: who told which, and which class was told for which."""

from typing import Any

from sma_pilot.judge.classes import confusion_table
from sma_pilot.judge.confusion import recall_of_classes
from sma_pilot.judge.discordance import mcnemar_p
from sma_pilot.judge.measurements import BASELINE, CANDIDATE, INCUMBENT
from sma_pilot.report.evidence import Evidence
from sma_pilot.report.svg import printable

_MOST_CLASSES = 30
_LONGEST_NAME = 60


def class_summary(evidence: Evidence) -> str:
    """Say how many units each arm told rightly, as events are summed up elsewhere."""
    units = evidence.plan.task.units
    caught = [evidence.quality[arm].caught for arm in (INCUMBENT, CANDIDATE)]
    one, other = caught
    if one is None or other is None or not one.size:
        return f"The judged rows hold no {units.removesuffix('s')} of a class that training has."
    counts = [
        int(which.sum()) for which in (one & other, one & ~other, ~one & other, ~one & ~other)
    ]
    return (
        f"Of {one.size} judged {units} both arms told {counts[0]} rightly, the incumbent alone "
        f"{counts[1]}, the candidate alone {counts[2]}, neither {counts[3]}. Exact McNemar test of "
        f"the differing ones: p = {mcnemar_p(counts[1], counts[2]):.3g}."
    )


def confusion_tables(evidence: Evidence) -> list[dict[str, Any]]:
    """Return a table for each arm: a row for each true class, a column for each that was told.

    Of many classes only those stand here that are told worst, and all others together as one.
    """
    tables = []
    for arm in (INCUMBENT, CANDIDATE, BASELINE):
        own = evidence.quality.get(arm)
        counts = None if own is None else confusion_table(own.row_metrics)
        if counts is None:
            continue
        recall, there = recall_of_classes(counts)
        shown = [k for k in recall.argsort(kind="stable").tolist() if there[k]][:_MOST_CLASSES]
        shown.sort()
        told = [k for k in range(len(recall)) if k in shown or counts[shown, k].any()]
        columns = told if len(told) <= _MOST_CLASSES else shown
        rows = [
            {
                "name": _name(evidence, k),
                "cells": [
                    {"value": f"{counts[k, j]:,.0f}", "hit": j == k, "none": not counts[k, j]}
                    for j in columns
                ],
                "others": f"{counts[k].sum() - counts[k, columns].sum():,.0f}",
                "recall": f"{recall[k]:.1%}",
            }
            for k in shown
        ]
        left_out = int(there.sum()) - len(shown)
        tables.append(
            {
                "arm": arm,
                "columns": [_name(evidence, k) for k in columns],
                "rows": rows,
                "has_others": columns is not told,
                "left_out": left_out,
            }
        )
    return tables


def _name(evidence: Evidence, number: int) -> str:
    return printable(evidence.scene.rows.classes[number], _LONGEST_NAME)
