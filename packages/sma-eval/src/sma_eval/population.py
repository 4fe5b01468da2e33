"""Population-based training: who takes over from whom, and with which values. No I/O.

After Jaderberg et al. 2017 (arXiv 1711.09846), with truncation selection: at every interval the
worst members copy one of the best each (exploit), and change what they copied (explore). All
members are compared at the same optimiser step, and every draw follows from the study's seeds and
that step: the same measurements lead to the same moves, however often they are asked for.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sma_eval.records import Move, TrialRecord
from sma_eval.scheduler import Pbt
from sma_eval.search import Choice, Nuisance, Range, draw, is_whole
from sma_eval.study import Objective

# A value of a range that is not drawn anew is multiplied by one of these.
_FACTORS = (0.8, 1.25)


def moved(
    members: Sequence[TrialRecord], step: int, pbt: Pbt, nuisance: Nuisance, objective: Objective
) -> list[TrialRecord]:
    """Decide the moves of a population after an optimiser step.

    Parameters
    ----------
    members
        Records of one arm and one seed.
    step
        After which they are compared: every member that is still in play has been measured there.
    pbt
        How to compare and to change.
    nuisance
        Values that are allowed.
    objective
        What is compared, and which way is better.

    Returns
    -------
    list of TrialRecord
        Of the members that move and have not yet: with the move, and the donor's checkpoint as
        their own.
    """
    ranked = sorted(
        (member for member in members if _in_play(member, step)),
        key=lambda member: (_cost(member, step, objective), member.trial.id),
    )
    count = min(max(1, int(len(ranked) * pbt.quantile)), len(ranked) // 2)
    if not count:
        return []
    rng = random.Random(f"{pbt.seed}/{members[0].trial.arm}/{members[0].trial.seed}/{step}")
    changed = []
    for member in ranked[-count:]:
        donor = rng.choice(ranked[:count])
        choice = explore(_values(donor, step), nuisance, pbt.resample, rng)
        move = Move(step=step, donor=donor.trial.id, nuisance=choice)
        # One that has gone on, or has moved at this step, has been decided before.
        if member.step == step and all(other.step != step for other in member.moves):
            moves = (*member.moves, move)
            changed.append(replace(member, moves=moves, checkpoint=donor.checkpoint))
    return changed


def explore(choice: Choice, nuisance: Nuisance, resample: float, rng: random.Random) -> Choice:
    """Change a choice: each value is drawn anew, or moved to a neighbour.

    Parameters
    ----------
    choice
        The values to start from.
    nuisance
        The values that are allowed.
    resample
        Probability of drawing a value anew. Otherwise one of a list moves to the entry before or
        after it, and one of a range is multiplied by 0.8 or 1.25, within the range.
    rng
        Of the draws.
    """
    drawn = draw(nuisance, rng)
    return {
        name: drawn[name] if rng.random() < resample else _near(name, choice[name], values, rng)
        for name, values in nuisance.items()
    }


def _near(name: str, value: int | float, values: Any, rng: random.Random) -> int | float:
    up = rng.random() < 0.5
    if isinstance(values, Range):
        return values.within(value * _FACTORS[up], whole=is_whole(name))
    place = values.index(value) + (1 if up else -1)
    return values[min(max(place, 0), len(values) - 1)]


def _in_play(member: TrialRecord, step: int) -> bool:
    """Whether it trains beyond the step: one that ended there has nothing to go on from."""
    ended_there = member.ended and member.step <= step
    return not ended_there and any(at == step for at, _ in member.curve)


def _cost(member: TrialRecord, step: int, objective: Objective) -> float:
    value = dict(member.curve)[step]
    return value if objective.mode == "min" else -value


def _values(member: TrialRecord, step: int) -> Choice:
    """Return the nuisance values that a member trained with up to a step."""
    before = [move.nuisance for move in member.moves if move.step < step]
    return before[-1] if before else member.trial.nuisance
