"""What a decision was worth, and what it came from: occlusion and gradient x input."""

from sma_core.explain.flips import Occlusion, occlusion
from sma_core.explain.gradients import Attribution, attribution

__all__ = ["Attribution", "Occlusion", "attribution", "occlusion"]
