"""How much sparse activation could save: one word, and why, in plain sentences."""

from dataclasses import dataclass
from typing import Final, Literal

from sma_pilot.assess.concentration import Coverage, HardRuns
from sma_pilot.assess.savings import CostsAtRates
from sma_pilot.report.words import minus

Word = Literal["much", "some", "little"]

COVERED: Final = 0.75
"""Share of the error that the steps which run are to hold. A convention: the table of the page has
the other rates."""
MUCH_RATE, MUCH_SAVED = 0.25, 0.4
LITTLE_RATE, LITTLE_SAVED = 0.5, 0.15
_FEW_RUNS = 10
_TRIVIAL = 0.98
# Of the way from a choice by chance to one in hindsight.
_ANNOUNCED = 2 / 3


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer with its reasons.

    Attributes
    ----------
    word : "much", "some" or "little"
    rate : float
        Smallest share of steps, chosen by what came before them, that holds `COVERED` of the error.
    saved : float
        Share of the FLOPs that is saved at this rate, against everything on.
    sentence : str
    reasons, cautions : tuple of str
        Why; and what would make the answer wrong.
    """

    word: Word
    rate: float
    saved: float
    sentence: str
    reasons: tuple[str, ...]
    cautions: tuple[str, ...]


def answer(
    foreseen: Coverage,
    hindsight: Coverage,
    runs: HardRuns,
    costs: CostsAtRates,
    *,
    explained: float | None,
    rows_read: int,
    rows: int,
) -> Answer:
    """Weigh how few steps would do against what skipping the others saves.

    *Much*: at most a quarter of the steps hold three quarters of the error, and running them alone
    saves at least 40 % of the FLOPs. *Little*: more than half of the steps are needed, or less than
    15 % is saved. *Some*: between.
    """
    rate = foreseen.needed(COVERED)
    saved = 1 - costs(rate).flops
    if rate > LITTLE_RATE or saved < LITTLE_SAVED:
        word: Word = "little"
    elif rate <= MUCH_RATE and saved >= MUCH_SAVED:
        word = "much"
    else:
        word = "some"
    sentence = (
        f"{word.capitalize()}. The {percent(rate)} of the steps that look hardest beforehand hold "
        f"{percent(COVERED)} of the error that a cheap forecast leaves; running the sub-modules "
        f"on these alone would save up to {percent(saved)} of the FLOPs of running them always."
    )
    return Answer(
        word=word,
        rate=rate,
        saved=saved,
        sentence=sentence,
        reasons=tuple(_reasons(word, rate, saved, foreseen, hindsight, runs, costs)),
        cautions=tuple(_cautions(runs, explained, rows_read, rows)),
    )


def _reasons(
    word: Word,
    rate: float,
    saved: float,
    foreseen: Coverage,
    hindsight: Coverage,
    runs: HardRuns,
    costs: CostsAtRates,
) -> list[str]:
    known = hindsight.needed(COVERED)
    found = []
    if word == "little":
        if known > LITTLE_RATE:
            found.append(
                f"Error is spread evenly: even in hindsight the hardest {percent(known)} of the "
                f"steps are needed to hold {percent(COVERED)} of it. There are few easy steps."
            )
        elif rate > LITTLE_RATE:
            found.append(
                f"Hard steps come unannounced: in hindsight {percent(known)} of the steps hold "
                f"{percent(COVERED)} of the error, but the rows before them tell too little of "
                "which steps these will be, and a router has nothing else to go by. Errors of pure "
                "noise look like this."
            )
        if saved < LITTLE_SAVED and rate <= LITTLE_RATE:
            found.append(
                f"The floor is high: {percent(costs.always)} of this architecture's FLOPs run at "
                "every step, whatever is skipped (the recurrence with its projections, embedding "
                "and head). A larger pool, or fewer EMA states, leaves more to skip."
            )
        return found
    gained = (COVERED - rate) / max(COVERED - known, 1e-9)
    announced = "announce them" if gained > _ANNOUNCED else "announce them in part"
    found.append(
        f"Hard steps are few, and the rows before them {announced}: by chance {percent(COVERED)} "
        f"of the steps would be needed, in hindsight {percent(known)}, beforehand "
        f"{percent(rate)}."
    )
    if runs.count:
        found.append(
            f"Steps over the mean error are {percent(runs.rate)} of all and come in runs of "
            f"{runs.mean_length:.1f} ({runs.clustering:.1f} times as long as by chance)."
        )
    if word == "some" and rate > MUCH_RATE:
        found.append(f"Yet {percent(rate)} of the steps would have to run.")
    if word == "some" and saved < MUCH_SAVED:
        found.append(
            f"{percent(costs.always)} of this architecture's FLOPs run at every step, whatever is "
            "skipped."
        )
    return found


def _cautions(runs: HardRuns, explained: float | None, rows_read: int, rows: int) -> list[str]:
    found = [
        "This is the most that could be saved, not a promise: no sparse model was trained, and a "
        "step that is hard because it is noise stays hard whatever runs there."
    ]
    if explained is not None and explained > _TRIVIAL:
        found.append(
            f"A cheap forecast already explains {100 * explained:.1f} % of the variance: see "
            "whether any neural model earns its place here."
        )
    if explained is not None and explained < 0.05:
        found.append(
            f"The best cheap forecast explains {100 * max(explained, 0.0):.1f} % of the variance: "
            "rows say next to nothing of those that follow, at least to a linear eye."
        )
    if runs.count < _FEW_RUNS:
        found.append(
            f"Hard steps are rare: {runs.count} {'run' if runs.count == 1 else 'runs'} of them in "
            "the validation slice, so the answer rests on little; a longer slice would firm it up."
        )
    if rows_read < rows:
        found.append(
            f"{rows_read:,} of {rows:,} validation rows were read, in stretches evenly spread."
        )
    return found


def percent(share: float) -> str:
    """Write a share, finer where it is small."""
    return minus(f"{round(100 * share, 0 if abs(share) >= 0.0995 else 1):g} %")
