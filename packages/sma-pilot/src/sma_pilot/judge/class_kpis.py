"""KPIs of a task that tells classes: what was counted, and the class that is told worst."""

import numpy as np

from sma_pilot.judge.classes import confusion_table
from sma_pilot.judge.confusion import recall_of_classes
from sma_pilot.judge.findings import Findings
from sma_pilot.judge.quality import Quality
from sma_pilot.judge.scene import ArmQuality
from sma_pilot.plan import Plan


def unit_counts(quality: Quality, plan: Plan) -> dict[str, tuple[int | None, str]]:
    """Return the counts of units by name, each with what it counts."""
    left_out = quality.units_left_out
    units = plan.task.units
    return {
        "units": (quality.events, f"Judged {units} of a class that training has."),
        "units_left_out": (quality.events_left_out, "The incumbent scored no row of it."),
        "units_unlabelled": (
            None if left_out is None else left_out.unlabelled,
            "Without a class: neither right nor wrong.",
        ),
        "units_of_unseen_class": (
            None if left_out is None else left_out.unseen,
            "Of a class that training has not: no arm could tell it, and none is blamed.",
        ),
        "incidents": (
            quality.incidents,
            f"Runs of {units} of one class; those that start together count as one.",
        ),
        "runs_of_rarest_class": (
            None if left_out is None else left_out.runs_of_rarest,
            "Bounds of a mean over classes count as if all had as few.",
        ),
        "right_to_wrong": (quality.candidate.lost_events, "Told rightly by the incumbent only."),
        "wrong_to_right": (quality.candidate.won_events, "Told rightly by the candidate only."),
        "blocks": (quality.blocks, "Stretches of time that are taken as independent."),
    }


def remark_unseen(quality: Quality, plan: Plan, findings: Findings) -> None:
    """Say so when judged units are of a class that training has not."""
    unseen = 0 if quality.units_left_out is None else quality.units_left_out.unseen
    if unseen:
        findings.remark(
            "quality/units_of_unseen_class",
            f"{unseen} judged {plan.task.units} are of a class that training has not. No arm could "
            "tell it, so they are left out of every metric: in use, they would be told wrongly.",
        )


def worst_class(measured: ArmQuality, classes: tuple[str, ...]) -> tuple[float | None, str]:
    """Return the smallest share of a class that is told rightly, and which class that is."""
    table = confusion_table(measured.row_metrics)
    if table is None:
        return None, ""
    recall, there = recall_of_classes(table)
    worst = int(np.argmin(np.where(there, recall, np.inf)))
    return float(recall[worst]), f"Class {classes[worst]!r}, {table[worst].sum():.0f} judged."
