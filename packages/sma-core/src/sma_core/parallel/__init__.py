"""Training in several processes: who takes part, how a model is spread, what ends all together."""

from .group import ALONE, Parallel, Sharding, join
from .spread import Spread, gathered, placed_like
from .stopping import Stopped, StopRequest, stop_requests

__all__ = [
    "ALONE",
    "Parallel",
    "Sharding",
    "Spread",
    "StopRequest",
    "Stopped",
    "gathered",
    "join",
    "placed_like",
    "stop_requests",
]
