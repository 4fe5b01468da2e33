"""The fail-safe around a candidate: it falls back, says why, and counts what that costs."""

from sma_pilot.guard.drift import DriftReference, DriftWindow
from sma_pilot.guard.fallback import REASONS, Fallback, Reason, Tally
from sma_pilot.guard.lane import GuardState
from sma_pilot.guard.scorer import GuardedScorer

__all__ = [
    "REASONS",
    "DriftReference",
    "DriftWindow",
    "Fallback",
    "GuardState",
    "GuardedScorer",
    "Reason",
    "Tally",
]
