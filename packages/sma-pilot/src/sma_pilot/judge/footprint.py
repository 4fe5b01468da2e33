"""What an arm keeps in memory, and what it costs to run."""

from dataclasses import dataclass

from sma_pilot.judge.measurements import OFFLINE, SINGLE_STREAM, Measurements


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one arm: its weights, once, and the streaming state of each entity."""

    weight_bytes: int
    state_bytes_per_entity: int

    def total(self, entities: int = 1) -> int:
        """Return the bytes that serving so many entities keeps."""
        return self.weight_bytes + entities * self.state_bytes_per_entity


def memory_of(measurements: Measurements, arm: str) -> Memory | None:
    """Return an arm's memory from whichever leg recorded it; None when none did."""
    legs = [measurements.leg(arm, scenario) for scenario in (SINGLE_STREAM, OFFLINE)]
    weights = next((leg.weight_bytes for leg in legs if leg.weight_bytes is not None), None)
    state = next(
        (leg.state_bytes_per_entity for leg in legs if leg.state_bytes_per_entity is not None),
        None,
    )
    if weights is None or state is None:
        return None
    return Memory(weight_bytes=weights, state_bytes_per_entity=state)
