"""Logs whose difficulty is known by construction, and their assessment."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.pilot.log_cases import MINUTE, START

from sma_core import DatasetWriter, NumericChannel, PreparedDataset
from sma_pilot.assess import Assessment, Ceilings, assess
from sma_pilot.logs.slices import SLICES
from sma_pilot.plan import Plan
from sma_pilot.progress import no_progress

CHANNELS = 4
ROWS = 6000


def plan_of(**candidate: Any) -> Plan:
    """A plan whose candidate has the given model, or is of the given kind."""
    arm = candidate if "kind" in candidate else {"kind": "sma", "model": candidate}
    return Plan.model_validate(
        {
            "version": 1,
            "name": "case",
            "log": {
                "files": ["x.csv"],
                "time": "t",
                "numeric": ["c*"],
                "period": "1m",
                "max_gap": "1h",
            },
            "slices": {"validation_from": 0.4, "judged_from": 0.8},
            "task": {"kind": "forecast_anomaly"},
            "quality": {"loss_limit": 0.1, "false_alarms_per_day": 1, "alarm_merge": "5m"},
            "arms": {"incumbent": {"kind": "transformer"}, "candidate": arm},
        }
    )


def noise(rows: int = ROWS, seed: int = 0) -> NDArray[np.float32]:
    """White noise [rows, C]: no step tells anything of the next."""
    return np.random.default_rng(seed).normal(size=(rows, CHANNELS)).astype(np.float32)


def regimes(rows: int = ROWS, seed: int = 0) -> NDArray[np.float32]:
    """Easy stretches of 450 rows, slow waves, and between them hard ones of 50, wild jumps."""
    wave = np.sin(np.arange(rows) / 200)[:, None] * np.ones(CHANNELS)
    hard = (np.arange(rows) % 500) >= 450
    wild = np.where(hard[:, None], noise(rows, seed), 0.02 * noise(rows, seed + 1))
    return (wave + wild).astype(np.float32)


def spikes(rows: int = ROWS, seed: int = 0) -> NDArray[np.float32]:
    """A still log with single jumps, each of them at a moment that nothing announces."""
    generator = np.random.default_rng(seed)
    values = 0.02 * noise(rows, seed + 1)
    values[generator.random(rows) < 0.05] += 3.0
    return values.astype(np.float32)


def write_dataset(
    folder: Path, values: NDArray[np.float32], entities: tuple[str, ...] = ("press",)
) -> PreparedDataset:
    """Write a data set of the three splits; every entity has the same rows."""
    borders = [0, *(int(share * len(values)) for share in (0.4, 0.8)), len(values)]
    time = START + MINUTE * np.arange(len(values))
    with DatasetWriter(
        folder,
        name="case",
        numeric=[NumericChannel(name=f"c{i}") for i in range(values.shape[1])],
        categorical=[],
        period_ns=MINUTE,
        entities=entities,
        splits=SLICES,
    ) as writer:
        for entity in range(len(entities)):
            for name, start, stop in zip(SLICES, borders[:-1], borders[1:], strict=True):
                writer.append(
                    name,
                    entity=entity,
                    time=time[start:stop],
                    numeric=values[start:stop],
                    label=np.zeros(stop - start, np.int32),
                )
    return PreparedDataset.open(folder)


def assess_values(
    folder: Path,
    values: NDArray[np.float32],
    plan: Plan | None = None,
    ceilings: Ceilings | None = None,
    **options: Any,
) -> Assessment:
    """Write the values as a data set and assess it."""
    dataset = write_dataset(folder, values, **options)
    return assess(plan or plan_of(width=64), dataset, folder, no_progress, ceilings)
