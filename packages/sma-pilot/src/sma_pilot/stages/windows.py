"""Which rows each look of each stage adds: its window in time, and the entities of a canary."""

import hashlib
from collections.abc import Sequence

from sma_core.dataset import DatasetCard
from sma_pilot.errors import PlanError
from sma_pilot.logs.slices import place_border
from sma_pilot.plan import Plan, StagePlan
from sma_pilot.replay.timeline import Window


def window_of(plan: Plan, stage: StagePlan, number: int, card: DatasetCard) -> Window:
    """Return the rows that look `number` of `stage` adds.

    Raises
    ------
    PlanError
        When a border lies outside of the log, or no entity falls to a canary.
    """
    whole = stage_window(plan, stage, card.provenance["borders_ns"], card.entities or ("all",))
    times = (0.0, *stage.look_times)
    span = whole.until_ns - whole.since_ns
    return Window(
        since_ns=whole.since_ns + round(times[number - 1] * span),
        until_ns=whole.since_ns + round(times[number] * span),
        entities=whole.entities,
    )


def stage_window(
    plan: Plan, stage: StagePlan, borders: Sequence[int], entities: tuple[str, ...]
) -> Window:
    """Return all rows that the looks of a stage add.

    Parameters
    ----------
    plan : Plan
    stage : StagePlan
        One of its stages.
    borders : sequence of int
        Edges of the plan's three slices on the log, ns.
    entities : tuple of str
        In the order of their codes.

    Raises
    ------
    PlanError
        As of `window_of`.
    """
    edges = stage_edges(plan, borders)
    place = plan.stages.index(stage)
    return Window(
        since_ns=edges[place],
        until_ns=edges[place + 1],
        entities=served_by_candidate(plan, stage, entities),
    )


def stage_edges(plan: Plan, borders: Sequence[int]) -> tuple[int, ...]:
    """Return where each stage's slice begins, and where the last one ends, ns.

    Parameters
    ----------
    plan : Plan
    borders : sequence of int
        Edges of the plan's three slices on the log, ns.

    Raises
    ------
    PlanError
        When a border lies outside of the log.
    """
    first, _, judged, end = borders
    edges = [judged]
    for place, stage in enumerate(plan.stages):
        edge = end if stage.until is None else place_border(stage.until, first, end - 1)
        if not edges[-1] < edge <= end:
            raise PlanError(
                f"stages.{place}.until: lies outside of the log; move the border into it"
            )
        edges.append(edge)
    return tuple(edges)


def served_by_candidate(
    plan: Plan, stage: StagePlan, entities: tuple[str, ...]
) -> frozenset[int] | None:
    """Return the entities that a canary gives to the candidate; None for the other kinds.

    An entity is drawn by a hash of its name and the plan's seed: which one it is depends on no
    other, so the same machines stay with the canary when others join or leave.

    Raises
    ------
    PlanError
        When the share is so small that no entity was drawn.
    """
    if stage.share is None:
        return None
    drawn = frozenset(
        index for index, name in enumerate(entities) if entity_draw(plan.seed, name) < stage.share
    )
    if not drawn:
        raise PlanError(
            f"stages.{stage.name}.share: {stage.share:g} of {len(entities)} entities draws none; "
            "give a larger share"
        )
    return drawn


def entity_draw(seed: int, name: str) -> float:
    """Return a number in [0, 1) that is an entity's own, evenly spread over names."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
