"""Calls of the two models: rows in, scores of one sequence out."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sma_core.model import Inputs
from sma_pilot.arms.base import Decisions, Scorer
from sma_pilot.guard.fallback import Trouble
from sma_pilot.guard.lane import Lane

Values = NDArray[np.float32]


def ask(scorer: Scorer, part: Inputs, state: Any) -> tuple[Values, Decisions]:
    """Have a model score rows [1, T, channels]; return float32 [T] and what it routed."""
    if part.steps == 1:
        score, decisions = scorer.step(part, state)
        with np.errstate(over="ignore"):
            values = np.array([score], np.float64).astype(np.float32)
    else:
        scores = scorer.score(part, state)
        values, decisions = scores.score[0].numpy().copy(), scores.decisions
    if values.shape != (part.steps,):
        raise ValueError(f"{part.steps} rows got scores of shape {values.shape}")
    return values, decisions


def part_of(inputs: Inputs, sequences: slice, rows: slice) -> Inputs:
    """Return a view of some sequences and rows."""
    numeric, categorical = inputs.numeric, inputs.categorical
    return Inputs(
        numeric=None if numeric is None else numeric[sequences, rows],
        categorical=None if categorical is None else categorical[sequences, rows],
    )


def observed_rows(part: Inputs) -> NDArray[np.bool_]:
    """Return which rows of one sequence have any numeric value, bool [T]."""
    if part.numeric is None:
        return np.ones(part.steps, dtype=bool)
    return part.numeric[0].isfinite().any(-1).cpu().numpy()


def score_by_incumbent(
    incumbent: Scorer, part: Inputs, lane: Lane, prime: Callable[[], None]
) -> Iterator[tuple[Values, Trouble | None]]:
    """Score rows [1, T, channels] by the incumbent, and take note of them in the lane.

    In one call if it goes, and row by row if there is trouble in it: an exception, an infinite
    score, or none for a row that has values and a past. Such a row's score is NaN. `prime` gives
    the lane a state of the incumbent.
    """
    values, trouble = np.full(part.steps, np.nan, np.float32), None
    try:
        if lane.incumbent is None:
            prime()
        values = ask(incumbent, part, lane.incumbent)[0]
    except Exception as error:
        trouble = Trouble.of(error)
    late = np.arange(part.steps) + lane.rows > 0
    bad = np.isinf(values) | (np.isnan(values) & observed_rows(part) & late)
    if trouble is None and bad.any():
        trouble = Trouble(reason="non_finite", detail=str(values[bad][0]))
    if trouble is not None:
        lane.incumbent = None  # what it carries on may be as broken as what it gave
        if part.steps > 1:
            for t in range(part.steps):
                yield from score_by_incumbent(
                    incumbent, part_of(part, slice(1), slice(t, t + 1)), lane, prime
                )
            return
        values[bad] = np.nan
    lane.take(part)
    yield values, trouble
