"""Small data sets, plans and arms whose replay has known answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sma_core.dataset import (
    CategoricalChannel,
    DatasetWriter,
    NumericChannel,
    PreparedDataset,
)
from sma_core.model import Inputs
from sma_core.routing.decision import RoutingDecision
from sma_core.state import TensorState
from sma_pilot.arms import Arm, Scores
from sma_pilot.plan import Plan

MINUTE = 60 * 10**9
START = 1_700_000_040 * 10**9
CHANNELS = 3
SMALL_MODEL = {
    "width": 8,
    "states": 3,
    "pool": [{"kind": "gated_attention", "query_width": 4, "value_width": 6, "window": 5}],
}
SMALL_TRANSFORMER = {"width": 8, "heads": 2, "hidden_width": 12, "window": 5}
SMALL_TRAINING = {"max_steps": 4, "window": 32, "batch_size": 4, "warmup_steps": 1}

# (split, entity, first minute, rows): what stands in the data set, in minutes since START.
Sequence = tuple[str, int, int, int]
USUAL: tuple[Sequence, ...] = (
    ("train", 0, 0, 150),
    ("train", 1, 0, 150),
    ("validation", 0, 150, 60),
    ("validation", 1, 150, 40),  # then 200 minutes of silence: its judged rows start afresh
    ("judged", 0, 210, 90),
    ("judged", 1, 390, 60),
    ("judged", 2, 230, 1),  # a machine that is new in judged time, with a single row
    ("judged", 3, 250, 33),  # one that has no validation row either
)


def make_dataset(
    folder: Path,
    sequences: tuple[Sequence, ...] = USUAL,
    *,
    categorical: bool = False,
    missing: bool = True,
    seed: int = 0,
    names: tuple[str, ...] = ("x", "y", "z"),
    center: float = 0.0,
    provenance: dict[str, Any] | None = None,
    named: tuple[str, ...] | None = None,
) -> PreparedDataset:
    """Noisy waves with failures; a precursor precedes each, so that alarms can be learned."""
    rng = np.random.default_rng(seed)
    entities = 1 + max(entity for _, entity, _, _ in sequences)
    with DatasetWriter(
        folder,
        name="case",
        numeric=[NumericChannel(name=name, center=center) for name in names],
        categorical=[CategoricalChannel(name="mode", vocabulary=("?", "a", "b"))]
        if categorical
        else (),
        classes=("usual", "before an event"),
        period_ns=MINUTE,
        entities=named or [f"machine {i}" for i in range(entities)],
        splits=("train", "validation", "judged"),
        provenance=provenance or {},
    ) as writer:
        for split, entity, first, rows in sequences:
            minute = np.arange(first, first + rows)
            phase = minute[:, None] / np.array([7.0, 11.0, 17.0])[: len(names)] + entity
            numeric = np.sin(phase) + 0.1 * rng.normal(size=(rows, len(names)))
            target = (minute % 50 < 5).astype(np.int32)
            numeric[:, 1] += 2 * target
            if missing:
                numeric[rng.random(numeric.shape) < 0.05] = np.nan
                numeric[rng.random(rows) < 0.04] = np.nan
            writer.append(
                split,
                entity=entity,
                time=START + MINUTE * minute,
                numeric=numeric.astype(np.float32),
                categorical=rng.integers(0, 3, (rows, 1), dtype=np.int32) if categorical else None,
                label=np.roll(target, 5).astype(np.int32),
                target=target,
            )
    return PreparedDataset.open(folder)


def make_plan(
    candidate: dict[str, Any] | None = None,
    incumbent: dict[str, Any] | None = None,
    baseline: dict[str, Any] | None = None,
    *,
    task: str = "forecast_anomaly",
    smoothing: int = 1,
    seed: int = 0,
    **replay: Any,
) -> Plan:
    """A plan with small arms; `replay` fields override quick ones."""
    alarm = task == "alarm"
    return Plan.model_validate(
        {
            "version": 1,
            "name": "case",
            "seed": seed,
            "log": {
                "files": ["x.csv"],
                "time": "time",
                "label": "label",
                "numeric": ["x"],
                "period": "1m",
                "max_gap": "1h",
            },
            "slices": {"validation_from": 0.4, "judged_from": 0.5},
            "task": {"kind": task, **({"horizon": "5m"} if alarm else {"smoothing": smoothing})},
            "quality": {"loss_limit": 0.1, "false_alarms_per_day": 2, "alarm_merge": "10m"},
            "arms": {
                "candidate": candidate
                or {"kind": "sma", "model": SMALL_MODEL, "training": SMALL_TRAINING},
                "incumbent": incumbent or {"kind": "dense_twin"},
                "baseline": baseline,
            },
            "replay": {
                "single_stream_events": 40,
                "warmup_events": 5,
                "passes": 2,
                "chunk_rows": 32,
                **replay,
            },
        }
    )


def quiet(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


class FakeClock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


@dataclass
class SumState(TensorState):
    """Sum and number of the rows so far."""

    total: Tensor
    count: Tensor


class SumScorer:
    """Scores a row by the sum of x over its stretch so far: wrong state gives a wrong score.

    Every row costs `row_ns` offline and `step_ns(k)` for the k-th event it steps.
    """

    submodules = ("left", "right")
    weight_bytes = 12

    def __init__(self, clock: FakeClock, *, offset: float = 0.0, row_ns: int = 10) -> None:
        self._clock = clock
        self._offset = offset
        self._row_ns = row_ns
        self._stepped = 0

    @staticmethod
    def step_ns(k: int) -> int:
        """Service time of the k-th event."""
        return 1000 + 7 * k

    def start(self, batch: int) -> SumState:
        """A sum of nothing, for each sequence."""
        return SumState(torch.zeros(batch, dtype=torch.float64), torch.zeros(batch))

    def score(self, inputs: Inputs, state: SumState) -> Scores:
        """Running sums of x, missing values left out."""
        assert inputs.numeric is not None
        sums = state.total[:, None] + inputs.numeric[..., 0].double().nan_to_num(0.0).cumsum(1)
        state.total.copy_(sums[:, -1])
        state.count += inputs.steps
        self._clock.now += self._row_ns * inputs.batch * inputs.steps
        return Scores(sums.float(), self._decisions(inputs))

    def step(self, inputs: Inputs, state: SumState):
        """The same for one row."""
        scores = self.score(inputs, state)
        self._clock.now += self.step_ns(self._stepped) - self._row_ns
        self._stepped += 1
        return scores.score.item() + self._offset, scores.decisions

    @staticmethod
    def _decisions(inputs: Inputs) -> tuple[RoutingDecision, ...]:
        """Two layers: `left` runs where x > 0, `right` always in the first and never else."""
        assert inputs.numeric is not None
        left = inputs.numeric[..., 0] > 0
        right = torch.ones_like(left)
        return tuple(
            RoutingDecision(active=active, confidence=torch.full(active.shape, 0.75))
            for active in (torch.stack([left, right], -1), torch.stack([left, ~right], -1))
        )


class PlainScorer(SumScorer):
    """The same scores from an arm that does not route."""

    submodules = ()

    def score(self, inputs: Inputs, state: SumState) -> Scores:
        """Running sums, no decision."""
        return Scores(super().score(inputs, state).score)


class FakeArm:
    """An arm that needs no fit."""

    def __init__(self, role: str, scorer: Any) -> None:
        self.role = role
        self._scorer = scorer

    def check(self, dataset: PreparedDataset) -> None:
        """Anything goes."""

    def fit(self, dataset: PreparedDataset, folder: Path, on_progress: Any) -> None:
        """Leave a file, as an arm must."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fake.json").write_text(f'"{self.role}"')

    def open(self, folder: Path) -> Any:
        """A new scorer."""
        return self._scorer()


def fake_arms(
    models: Path, clock: FakeClock, dataset: PreparedDataset, **candidate: Any
) -> dict[str, Arm]:
    """A routing candidate and a plain incumbent with the same scores, fitted."""
    arms: dict[str, Arm] = {
        "incumbent": FakeArm("incumbent", lambda: PlainScorer(clock)),
        "candidate": FakeArm("candidate", lambda: SumScorer(clock, **candidate)),
    }
    for role, arm in arms.items():
        arm.fit(dataset, models / role, quiet)
    return arms
