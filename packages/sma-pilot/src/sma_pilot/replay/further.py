"""The legs that a plan may ask for beside offline and single stream: one line a scenario."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sma_pilot.arms.base import Scorer
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress
from sma_pilot.replay.clock import Clock, Wait, wait_until
from sma_pilot.replay.timeline import Timeline


@dataclass(frozen=True, kw_only=True)
class LegContext:
    """What a leg is measured with.

    Parameters
    ----------
    arm : str
        Name in the measurements.
    scorer : Scorer
        Of that arm.
    open_scorer : callable
        Opens a further scorer, by role.
    sample_memory : callable
        Called when all states are still held.
    wait : Wait
        Waits for a time by `clock`.
    """

    plan: Plan
    arm: str
    scorer: Scorer
    open_scorer: Callable[[str], Scorer]
    timeline: Timeline
    folder: Path
    clock: Clock
    on_progress: OnProgress
    sample_memory: Callable[[], None]
    wait: Wait = wait_until


RunLeg = Callable[[LegContext], dict[str, Any]]


def further_scenarios() -> dict[str, RunLeg]:
    """Return what runs each scenario, by name; which import this file in turn."""
    from sma_pilot.replay.guarded import run_guarded
    from sma_pilot.replay.multi_stream import run_multi_stream
    from sma_pilot.replay.paced import run_paced
    from sma_pilot.replay.server import run_server

    return {
        "multi_stream": run_multi_stream,
        "server": run_server,
        "guarded": run_guarded,
        "paced": run_paced,
    }


def further_legs(plan: Plan) -> list[tuple[str, str]]:
    """Return (arm, scenario) of the legs that follow the single-stream ones, in order.

    Arms take turns in a random order, each scenario anew.
    """
    shuffled = random.Random(f"{plan.seed}/further")
    arms = list(plan.named_arms())
    legs = []
    for scenario in plan.replay.scenarios:
        legs += [(arm, scenario) for arm in shuffled.sample(arms, len(arms))]
    if plan.guard is not None:
        legs.append(("candidate", "guarded"))
    if any(stage.kind == "shadow" for stage in plan.stages):
        legs.append(("candidate", "paced"))
    return legs
