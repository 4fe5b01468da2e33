"""Centre and scale of every channel, from training rows alone.

Mean and standard deviation rather than median and quartiles: they merge exactly from piece to piece
in one pass, and the quartiles of the many channels that mostly rest (error counters, queue lengths)
coincide, which would blow up their first movement without bound. The price, that an outlier in
training widens a scale, is bounded by the clip and told by `check_log`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLIP = 10.0
"""Scaled values end at +-10: one spike of a thousand deviations must not rule the loss (its square
would weigh a million ordinary steps), and beyond ten deviations further distance says nothing new.
"""
_FLEET_SHARE = 0.01
_RESOLUTION = 1e-6


class Moments:
    """Count, mean, variance, least and greatest value of C channels, NaN left out, in one pass.

    Pieces merge by the update of Chan, Golub and LeVeque (1979), which stays exact to rounding
    where a sum of squares would cancel.
    """

    def __init__(self, channels: int) -> None:
        self.count = np.zeros(channels, np.int64)
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)
        self.low = np.full(channels, np.inf)
        self.high = np.full(channels, -np.inf)

    def add(self, values: NDArray[np.float64]) -> None:
        """Add rows [T, C]."""
        present = ~np.isnan(values)
        count = present.sum(axis=0)
        filled = np.where(present, values, 0.0)
        mean = filled.sum(axis=0) / np.maximum(count, 1)
        piece = Moments(len(count))
        piece.count, piece.mean = count, mean
        piece.squares = np.square(np.where(present, values - mean, 0.0)).sum(axis=0)
        piece.low = np.where(present, values, np.inf).min(axis=0, initial=np.inf)
        piece.high = np.where(present, values, -np.inf).max(axis=0, initial=-np.inf)
        self.merge(piece)

    def merge(self, other: "Moments") -> None:
        """Add what another piece has seen."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        shift = other.mean - self.mean
        self.mean = self.mean + shift * share
        self.squares = self.squares + other.squares + np.square(shift) * self.count * share
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.count = count

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Standard deviation, 0 where fewer than two values were seen."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))


@dataclass(frozen=True)
class Scaler:
    """Fitted centres and scales.

    Parameters
    ----------
    fleet_center, fleet_scale : float64 [C]
        Over all entities: for ``global`` scaling, and for an entity unseen in training.
    center, scale : float64 [E, C]
        Of each entity, as applied.
    """

    fleet_center: NDArray[np.float64]
    fleet_scale: NDArray[np.float64]
    center: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fit(cls, by_entity: list[Moments], *, per_entity: bool) -> "Scaler":
        """Fit on the moments of each entity's training rows.

        A channel that never moved in training has no deviation to divide by: an entity's takes the
        fleet's scale, and one that is constant everywhere takes 1, its own unit. An entity's scale
        is never below 1% of the fleet's, so that one quiet machine does not turn the noise of a
        sensor's last digit into alarms.
        """
        fleet = Moments(len(by_entity[0].count))
        for moments in by_entity:
            fleet.merge(moments)
        moves = fleet.deviation > _RESOLUTION * np.abs(fleet.mean)
        fleet_scale = np.where(moves, fleet.deviation, 1.0)
        center = np.tile(fleet.mean, (len(by_entity), 1))
        scale = np.tile(fleet_scale, (len(by_entity), 1))
        if per_entity:
            for i, moments in enumerate(by_entity):
                seen = moments.count > 0
                moved = moments.deviation > _RESOLUTION * np.abs(moments.mean)
                own = np.maximum(moments.deviation, _FLEET_SHARE * fleet_scale)
                center[i] = np.where(seen, moments.mean, fleet.mean)
                scale[i] = np.where(seen & moved, own, fleet_scale)
        return cls(fleet.mean, fleet_scale, center, scale)

    def apply(self, entity: int, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Scale rows [T, C] of one entity; NaN stays NaN."""
        scaled = (values - self.center[entity]) / self.scale[entity]
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    def to_dict(self, entities: list[str], channels: tuple[str, ...]) -> dict[str, Any]:
        """Return what was applied to each entity, for provenance."""
        return {
            "clip": CLIP,
            "channels": list(channels),
            "entities": {
                name: {"center": self.center[i].tolist(), "scale": self.scale[i].tolist()}
                for i, name in enumerate(entities)
            },
        }
