"""What a log can prove, worked out before the pilot: from its events, or from an incumbent's too.

A limit that the data cannot prove makes a pilot that ends inconclusive whatever the candidate does.
Better to know it before anything is trained.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from sma_core.dataset import PreparedDataset
from sma_pilot.arms import build_arms
from sma_pilot.arms.recorded import RecordedScorer
from sma_pilot.errors import PlanError
from sma_pilot.judge.measurements import CANDIDATE, INCUMBENT, AlignedSlice, Measurements
from sma_pilot.judge.provability import (
    Provability,
    assess_provability,
    evidence_of_events,
    evidence_of_incumbent,
)
from sma_pilot.judge.provable import LIKELY_DISCORDANCE, POWER, Assumption
from sma_pilot.logs.row_keys import judged_keys
from sma_pilot.logs.windows import prepare
from sma_pilot.plan import TASKS_OF_METRIC, Plan
from sma_pilot.progress import OnProgress
from sma_pilot.replay.clock import wall_clock
from sma_pilot.replay.measurements_io import read_scores
from sma_pilot.replay.offline import run_offline
from sma_pilot.replay.recorded import copy_scores
from sma_pilot.replay.timeline import Timeline, Window
from sma_pilot.run_folder import RunFolder
from sma_pilot.stages.look import levels
from sma_pilot.stages.windows import stage_window


def plan_pilot(
    plan: Plan,
    data: Path,
    on_progress: OnProgress,
    *,
    run: RunFolder | None = None,
    discordance: float = LIKELY_DISCORDANCE,
    power: float = POWER,
) -> tuple[Provability, ...]:
    """Work out the smallest loss of event recall that the log can prove, and hold the limit to it.

    Each stage of a plan in stages has to prove its own limit on its own slice, so each gets an
    answer, at the level of its last look; a plan without stages gets one.

    Parameters
    ----------
    plan : Plan
    data : Path
        Where the plan's relative paths start.
    on_progress : OnProgress
    run : RunFolder, optional
        Where the incumbent is fitted and replayed first, so that the memory of what it catches
        is measured; the pilot itself takes up the prepared data set and the fitted model. None:
        from the events alone.
    discordance, power : float
        See `Assumption`.

    Raises
    ------
    PlanError
        The headline is no event recall, an option is out of range, or a stage does not fit the log.
    LogError
        The log does not fit the plan.
    """
    if plan.quality.headline != "event_recall":
        has_events = plan.task.kind in TASKS_OF_METRIC["event_recall"]
        otherwise = "plan with 'event_recall', or " if has_events else ""
        raise PlanError(
            f"quality.headline: what can be proven of {plan.quality.headline!r} cannot be told "
            "beforehand, as its variance is that of arms that are not there yet; "
            f"{otherwise}judge and read `more_data` of the result"
        )
    for name, value in (("discordance", discordance), ("power", power)):
        if not 0 < value < 1:
            raise PlanError(f"--{name}: need a share between 0 and 1, got {value:g}")
    if run is None:
        keys = judged_keys(plan, data, on_progress)
        # Of an arm that is not there it is only supposed that it scores every row.
        supposed = dict.fromkeys((INCUMBENT, CANDIDATE), np.zeros(keys.rows.rows, np.float32))
        validation, judged = None, replace(keys.rows, scores=supposed)
        borders, entities = keys.borders, keys.entities
    else:
        dataset, validation, judged = _replay_incumbent(plan, data, run, on_progress)
        borders = dataset.card.provenance["borders_ns"]
        entities = dataset.card.entities or ("all",)
    answers = []
    for stage in plan.stages or (None,):
        read, rows = plan, judged
        if stage is not None:
            read = plan.reading(stage, levels(stage, plan)[-1])
            rows = _within(judged, stage_window(plan, stage, borders, entities))
        known = (
            evidence_of_events(rows, read)
            if validation is None
            else evidence_of_incumbent(validation, rows, read)
        )
        assumed = Assumption(discordance=discordance, alpha=read.quality.alpha, power=power)
        answers.append(assess_provability(known, assumed, read))
    return tuple(answers)


def _within(rows: AlignedSlice, window: Window) -> AlignedSlice:
    inside = (rows.time >= window.since_ns) & (rows.time < window.until_ns)
    if window.entities is not None:
        inside &= np.isin(rows.entity, list(window.entities))
    return rows.take(np.flatnonzero(inside))


def _replay_incumbent(
    plan: Plan, data: Path, run: RunFolder, on_progress: OnProgress
) -> tuple[PreparedDataset, AlignedSlice, AlignedSlice]:
    """Fit the incumbent alone, score validation and judged rows once, and return both slices."""
    dataset = prepare(plan, data, run.dataset, on_progress)
    arm = build_arms(plan, data)[INCUMBENT]
    arm.check(dataset)
    arm.fit(dataset, run.models / INCUMBENT, on_progress)
    timeline = Timeline(dataset, round(plan.log.max_gap.total_seconds() * 1e9))
    folder = run.path / "planning"
    scorer, chunk_rows = arm.open(run.models / INCUMBENT), plan.replay.chunk_rows
    if isinstance(scorer, RecordedScorer):
        copy_scores(
            INCUMBENT, scorer, timeline, folder, chunk_rows=chunk_rows, on_progress=on_progress
        )
    else:
        run_offline(
            INCUMBENT,
            scorer,
            timeline,
            folder,
            chunk_rows=chunk_rows,
            routing=False,
            clock=wall_clock,
            on_progress=on_progress,
        )
    scores = {}
    for name in ("validation", "judged"):
        own = read_scores(folder, INCUMBENT, name)
        # Held against an arm that never raises an alarm: its loss is the incumbent's recall.
        silent = replace(own, score=np.full(own.rows, -np.inf, np.float32))
        scores[name] = {INCUMBENT: own, CANDIDATE: silent}
    both = Measurements(entities=timeline.entities, scores=scores)
    return dataset, AlignedSlice.align(both, "validation"), AlignedSlice.align(both, "judged")
