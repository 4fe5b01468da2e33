"""What the searches for nuisance values have spent and found, in plain words. No I/O.

Arms are compared with each at its best nuisance values, which is fair only as far as each was
searched alike. Where they were not, this says so before anything is compared.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sma_eval.analysis import result_of, validation_cost
from sma_eval.records import TrialRecord
from sma_eval.scheduler import Pbt
from sma_eval.study import Study

_MAX_NAMED = 4  # arms in a sentence


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What one arm's search has spent.

    Parameters
    ----------
    arm
        Its label.
    choices
        Choices of nuisance values that were tried with at least one seed.
    whole
        Those of them that came to their end with every seed that was begun or to be begun.
    stopped, failed, unfinished
        Trials.
    steps
        Optimiser steps of all trials together.
    """

    arm: str
    choices: int
    whole: int
    stopped: int
    failed: int
    unfinished: int
    steps: int


def efforts(records: Sequence[TrialRecord]) -> list[Effort]:
    """Add up what each arm's search has spent, in the order of the records."""
    arms: dict[str, list[TrialRecord]] = {}
    for record in records:
        arms.setdefault(record.trial.arm, []).append(record)
    return [_effort(arm, members) for arm, members in arms.items()]


def describe_search(records: Sequence[TrialRecord], study: Study) -> list[str]:
    """Say what was searched and spent, a sentence or two a line; nothing where nothing was tuned.

    Parameters
    ----------
    records
        Of every trial, whatever its status.
    study
        The study.
    """
    if study.choices == 1:
        return []
    spent = [effort for effort in efforts(records) if effort.steps]
    if not spent:
        return []
    lines = [_stopped(spent), _budgets(spent)]
    if isinstance(study.scheduler, Pbt):
        lines.insert(
            0,
            f"Nuisance values changed while training (PBT): for each seed the best of "
            f"{study.choices} members on validation stands for an arm.",
        )
    if study.objective.costs:
        lines.append(_front(records, study))
    return [line for line in lines if line]


def pareto_choices(records: Sequence[TrialRecord], study: Study) -> list[str]:
    """List the choices of all arms that no other beats in the objective and every cost.

    Means over seeds, the objective on validation; choices that lack a seed do not take part.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        label = " ".join(filter(None, [record.trial.arm, record.trial.choice]))
        groups.setdefault(label, []).append(record)
    points = {
        label: tuple(
            statistics.fmean(values)
            for values in (
                [validation_cost(record, study.objective) for record in group],
                *(
                    [getattr(result_of(record), cost) for record in group]
                    for cost in study.objective.costs
                ),
            )
        )
        for label, group in groups.items()
        if all(record.result is not None for record in group)
    }

    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    return [
        label
        for label, point in points.items()
        if not any(beats(other, point) for other in points.values())
    ]


def _effort(arm: str, members: Sequence[TrialRecord]) -> Effort:
    choices: dict[str, list[TrialRecord]] = {}
    for record in members:
        choices.setdefault(record.trial.nuisance_label, []).append(record)

    def count(*statuses: str) -> int:
        return sum(record.status in statuses for record in members)

    return Effort(
        arm=arm,
        choices=sum(any(record.step for record in group) for group in choices.values()),
        whole=sum(all(r.status == "finished" for r in group) for group in choices.values()),
        stopped=count("stopped"),
        failed=sum(record.failed for record in members),
        unfinished=count("pending", "running"),
        steps=sum(record.step for record in members),
    )


def _stopped(spent: Sequence[Effort]) -> str:
    stopped = sum(effort.stopped for effort in spent)
    if not stopped:
        return ""
    return (
        f"Stopped early, or not begun, as others of the arm were better: {stopped} of the trials. "
        "They are in no figure, and only choices with every seed are compared."
    )


def _budgets(spent: Sequence[Effort]) -> str:
    """Say whether each arm had the same search; steps alone differ by early stops of training."""
    first = spent[0]
    alike = all(
        (e.choices, e.whole, e.stopped, e.failed, e.unfinished)
        == (first.choices, first.whole, first.stopped, first.failed, first.unfinished)
        for e in spent
    )
    if alike and not first.stopped:
        return (
            f"Every arm was tuned alike: {first.choices} choices of nuisance values, "
            f"{first.whole} of them to the end with every seed."
        )
    if alike and len({e.steps for e in spent}) == 1:
        return (
            f"Every arm was tuned alike: {first.choices} choices of nuisance values, "
            f"{first.whole} of them to the end with every seed, {first.steps:,} steps."
        )
    ranked = sorted(spent, key=lambda e: (e.whole, e.choices, e.steps))
    shown = ranked if len(ranked) <= _MAX_NAMED else [ranked[0], ranked[-1]]
    parts = [f"{e.arm} {e.choices} choices, {e.whole} to the end, {e.steps:,} steps" for e in shown]
    joint = "; " if shown is ranked else " (least) to "
    tail = "" if shown is ranked else " (most)"
    return (
        f"Arms were NOT tuned alike, which may favour those tuned more: {joint.join(parts)}{tail}."
    )


def _front(records: Sequence[TrialRecord], study: Study) -> str:
    labels = pareto_choices(records, study)
    if not labels:
        return ""
    costs = " and ".join(study.objective.costs)
    return (
        f"Of all choices, not beaten in both {study.objective.metric} on validation and {costs}: "
        f"{', '.join(labels)}."
    )
