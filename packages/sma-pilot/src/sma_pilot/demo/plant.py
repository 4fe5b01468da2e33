"""One synthetic machine: sensors that follow from product, shift, load, heat, and its failures.

Everything is drawn from one generator per machine and computed over all of time at once. A spindle
turns at the set point of the product; torque and speed give power, power gives heat, heat flows
through lags into temperatures, and coolant carries it off. Normal running has traps for a careless
detector: a product that shakes the machine, hot afternoons, a filter that clogs between services,
single spikes of the encoder that mean nothing.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sma_pilot.demo.failures import (
    BEARING,
    COOLANT,
    ENCODER,
    Failure,
    label,
    severity,
)

Series = NDArray[np.float64]

PERIOD_MINUTES = 5
SLOTS_PER_DAY = 24 * 60 // PERIOD_MINUTES

PRODUCTS = ("bracket", "flange", "housing", "shaft")
_SPEED_RPM = np.array([3200.0, 2400.0, 1800.0, 4000.0])
_TORQUE_NM = np.array([18.0, 30.0, 46.0, 15.0])
_ROUGHNESS = np.array([1.0, 1.1, 1.5, 1.25])  # how hard a product shakes the machine
_CYCLE_S = np.array([42.0, 65.0, 96.0, 55.0])
_ORDER_HOURS = (6, 30)

SHIFTS = ("night", "early", "late")
_CREWS = 4  # they rotate through the shifts, each with a habit of its own

# First signs at their strongest, as a multiple or in units of the channel.
_WORN_SHAKE, _WORN_HEAT_C = 0.65, 6.0
_BLOCKED_FLOW, _BLOCKED_HEAT = 0.25, 0.6
_SPIKE_RATE, _SPIKE_SIZE = 0.5, (2.0, 5.0)
_SPIKE_RATE_SOUND = 0.01


def simulate(rng: np.random.Generator, slots: int, failures: list[Failure]) -> pl.DataFrame:
    """Simulate a machine without any fault of its log: one row for each slot.

    Parameters
    ----------
    rng : numpy.random.Generator
        The machine's own.
    slots : int
        Number T of five-minute slots.
    failures : list of Failure

    Returns
    -------
    polars.DataFrame
        [T] rows: ``product`` and ``shift`` as text, 14 numeric channels, ``failure``.
    """
    worn = severity(failures, BEARING, slots)
    blocked = severity(failures, COOLANT, slots)
    loose = severity(failures, ENCODER, slots)
    failed = label(failures, slots)
    days = np.arange(slots) / SLOTS_PER_DAY

    product = _orders(rng, slots)
    shift = (days * 3).astype(int) % 3
    habit = rng.normal(1.0, 0.03, _CREWS)[(days * 3).astype(int) % _CREWS]
    running = np.where(failed > 0, 0.35, 1.0)  # a failed machine limps

    set_speed = np.round(_SPEED_RPM[product] * habit / 10) * 10
    speed = set_speed * running * (1 + 0.004 * rng.normal(size=slots))
    torque = _TORQUE_NM[product] * (1 + 0.08 * _wander(rng, slots, 0.9)) * (1 + 0.08 * worn)
    power = speed * torque / 9549  # kW, for rpm and Nm
    current = 2.1 * power + 1.5 + 0.25 * rng.normal(size=slots)

    season = 8 * np.sin(2 * np.pi * (days - 20) / 365)
    daily = (4 + 2 * _wander(rng, slots, 0.999)) * np.sin(2 * np.pi * (days - 0.4))
    ambient = 19 + season + daily + 1.2 * _wander(rng, slots, 0.995)

    clogged = _since_service(rng, slots) * 0.08
    flow = (9 + 0.25 * power) * (1 - clogged) * (1 - _BLOCKED_FLOW * blocked)
    flow *= 1 + 0.025 * rng.normal(size=slots)
    # A blocked circuit carries heat off badly, and answers late.
    heat = power / (0.28 * flow)
    warm, slow = _lag(heat, 8), _lag(heat, 36)
    coolant = ambient + 4.0 * warm * (1 + _BLOCKED_HEAT * blocked)
    coolant += 2.0 * blocked * (slow - warm)
    bearing = ambient + 1.6 * _lag(power, 24) + _WORN_HEAT_C * worn
    motor = ambient + 1.9 * _lag(power, 15) + 0.5 * (coolant - ambient)

    drift = 1 + rng.normal(0.0, 0.08) * days / max(days[-1], 1.0)  # of the vibration sensor
    shake = (speed / 3000) ** 2 * _ROUGHNESS[product] * (1 + _WORN_SHAKE * worn) * drift
    vibration = (0.3 + 1.4 * shake) * np.exp(0.12 * _wander(rng, slots, 0.7))
    crest = 3.2 + 0.8 * worn + 0.25 * rng.normal(size=slots)

    spikes = rng.random(slots) < _SPIKE_RATE_SOUND + _SPIKE_RATE * loose
    jitter = (2 + speed / 1500) * np.exp(0.15 * rng.normal(size=slots))
    jitter *= np.where(spikes, rng.uniform(*_SPIKE_SIZE, size=slots), 1.0)
    cycle = _CYCLE_S[product] / habit / np.sqrt(running) * (1 + 0.01 * rng.normal(size=slots))

    return pl.DataFrame(
        {
            "product": np.array(PRODUCTS)[product],
            "shift": np.array(SHIFTS)[shift],
            "set_speed_rpm": set_speed,
            "speed_rpm": speed,
            "torque_nm": torque,
            "power_kw": power,
            "current_a": current,
            "vibration_rms_mm_s": vibration,
            "vibration_peak_mm_s": vibration * crest,
            "bearing_temp_c": bearing + 0.3 * rng.normal(size=slots),
            "motor_temp_c": motor + 0.3 * rng.normal(size=slots),
            "coolant_flow_l_min": flow,
            "coolant_temp_c": coolant + 0.3 * rng.normal(size=slots),
            "ambient_temp_c": ambient + 0.2 * rng.normal(size=slots),
            "position_jitter_um": jitter,
            "cycle_time_s": cycle,
            "failure": failed,
        }
    )


def _orders(rng: np.random.Generator, slots: int) -> NDArray[np.int64]:
    """Return the product [T] of each slot: orders of some hours, one after another."""
    low, high = (hours * 60 // PERIOD_MINUTES for hours in _ORDER_HOURS)
    lengths = rng.integers(low, high, size=slots // low + 1)
    # Never the same product twice in a row: a change of order is a change of regime.
    steps = rng.integers(1, len(PRODUCTS), size=lengths.size)
    return np.repeat(steps.cumsum() % len(PRODUCTS), lengths)[:slots]


def _wander(rng: np.random.Generator, slots: int, memory: float) -> Series:
    """Return an autoregressive series [T] of variance near 1."""
    noise = rng.normal(size=slots) * np.sqrt((1 + memory) / (1 - memory))
    return _smooth(noise, 1 - memory)


def _lag(source: Series, slots: float) -> Series:
    """Return what a body shows that follows `source` [T] with a time constant of `slots`."""
    return _smooth(source, 1 - np.exp(-1 / slots))


def _smooth(source: Series, weight: float) -> Series:
    return pl.Series(source).ewm_mean(alpha=weight, adjust=False).to_numpy()


def _since_service(rng: np.random.Generator, slots: int) -> Series:
    """Return how far [T] the filter is from its last change: 0 to about 1, like a saw."""
    interval = int(rng.integers(12, 18)) * SLOTS_PER_DAY
    return (np.arange(slots) + rng.integers(interval)) % interval / interval
