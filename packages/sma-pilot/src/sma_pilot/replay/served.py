"""Who serves in a stage: from the canary on, the candidate within its guard."""

from collections.abc import Callable

from sma_pilot.arms import Scorer
from sma_pilot.guard import DriftReference, GuardedScorer
from sma_pilot.plan import Plan
from sma_pilot.progress import OnProgress
from sma_pilot.replay.clock import Clock
from sma_pilot.replay.timeline import Timeline


def serving(
    plan: Plan,
    timeline: Timeline,
    bare: Callable[[str], Scorer],
    clock: Clock,
    on_progress: OnProgress,
) -> Callable[[str], Scorer]:
    """Return what opens an arm's scorer as it serves in the stage that `plan` is the reading of.

    Before a canary, and without a guard in the plan, that is what `bare` opens, by role.
    """
    guard = plan.guard
    if guard is None or not any(stage.serves for stage in plan.stages):
        return bare
    reference = None
    if guard.drift_limit is not None:
        reference = DriftReference.of(timeline.train, on_progress)

    def open_scorer(role: str) -> Scorer:
        if role != "candidate":
            return bare(role)
        return GuardedScorer(bare(role), bare("incumbent"), guard, reference, clock)

    return open_scorer
