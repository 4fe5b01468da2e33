"""A signed pilot with arms whose weaknesses are known, and logs of what came after its go."""

import gc
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tests.pilot.replay_cases import FakeArm, FakeClock, quiet
from torch import Tensor

from sma_core.model import Inputs
from sma_core.routing.decision import RoutingDecision
from sma_core.state import TensorState
from sma_pilot import pilot
from sma_pilot.arms import Scores
from sma_pilot.decision import signing
from sma_pilot.monitor import course
from sma_pilot.monitor.course import Monitored
from sma_pilot.plan import Plan
from sma_pilot.replay.runner import replay
from sma_pilot.run_folder import RunFolder

MINUTE = 60 * 10**9
START = 1_704_067_200 * 10**9  # 2024-01-01T00:00:00Z
JUDGED_UNTIL = 4400
"""Minutes that the pilot's own log lasts; what comes after is new."""
MACHINES = ("mill", "press")


PLAN = """
version = 1
name = "watched"
description = "Presses of hall 3 <b>spring</b>"

[log]
files = ["plant.parquet"]
time = "t"
entity = "machine"
label = "fault"
numeric = ["x", "y", "z"]
period = "1m"
max_gap = "1h"

[slices]
validation_from = 0.3
judged_from = 0.45

[task]
kind = "forecast_anomaly"

[quality]
loss_limit = 0.2
false_alarms_per_day = 20
alarm_merge = "5m"
resamples = 200
block = "2h"

[efficiency]
latency_ratio_limit = 2.0
memory_ratio_limit = 2.0

[arms.incumbent]
kind = "dense_twin"

[arms.candidate]
kind = "sma"

[replay]
single_stream_events = 400
warmup_events = 5
passes = 1
chunk_rows = 1024
"""


def monitor_plan(**tables: Any) -> Plan:
    """A plan on three channels of two machines; `tables` replace whole ones."""
    return Plan.model_validate(tomllib.loads(PLAN) | tables)


def plant(
    since: int,
    minutes: int,
    *,
    machines: tuple[str, ...] = MACHINES,
    labelled: bool = True,
    seed: int = 1,
    **shift: float,
) -> pl.DataFrame:
    """A row a minute and machine from minute `since` on: noise, and events of which x tells.

    Parameters
    ----------
    shift : float
        Added to a channel, in its usual deviations.
    """
    frames = []
    for place, machine in enumerate(machines):
        generator = np.random.default_rng([seed, since, place])
        minute = np.arange(since, since + minutes)
        fault = ((minute + 41 * place) % 120 < 8).astype(np.int64)
        values = generator.normal(size=(minutes, 3))
        values[:, 0] += 8 * fault
        columns = {name: values[:, i] + shift.get(name, 0.0) for i, name in enumerate("xyz")}
        frame = pl.DataFrame({"t": START + MINUTE * minute, "machine": machine, **columns})
        frames.append(frame.with_columns(fault=pl.Series(fault)) if labelled else frame)
    return pl.concat(frames).sort("t", "machine")


def write_log(path: Path, *frames: pl.DataFrame) -> str:
    """Write a log and return its path as typed."""
    pl.concat(frames, how="diagonal").write_parquet(path)
    return str(path)


@dataclass
class NoState(TensorState):
    """Nothing to carry but a number a sequence."""

    count: Tensor


class LevelScorer:
    """Scores a row by how far x is from its usual; a candidate has three weaknesses.

    Where y is beyond 4 it sees nothing, where y is below -4 it gives no score, and where z is
    beyond 4 its router runs nothing.
    """

    weight_bytes = 12

    def __init__(self, clock: FakeClock, *, weak: bool) -> None:
        self._clock = clock
        self._weak = weak
        self.submodules = ("left", "right") if weak else ()

    def start(self, batch: int) -> NoState:
        """See `Scorer.start`."""
        return NoState(torch.zeros(batch))

    def score(self, inputs: Inputs, state: NoState) -> Scores:
        """See `Scorer.score`."""
        assert inputs.numeric is not None
        x, y, z = inputs.numeric.unbind(-1)
        score = x.abs()
        if not self._weak:
            return Scores(score)
        score = torch.where(y > 4, 0.0, torch.where(y < -4, torch.nan, score))
        runs = torch.stack([x > 0, y > 0], -1) & (z < 4)[..., None]
        confidence = torch.full(runs.shape, 0.75)
        return Scores(score, (RoutingDecision(active=runs, confidence=confidence),))

    def step(self, inputs: Inputs, state: NoState) -> Any:
        """See `Scorer.step`."""
        scores = self.score(inputs, state)
        self._clock.now += 1000
        return scores.score.item(), scores.decisions


def level_arms(clock: FakeClock) -> dict[str, Any]:
    """An incumbent without a weakness, and a candidate with three."""
    return {
        "incumbent": FakeArm("incumbent", lambda: LevelScorer(clock, weak=False)),
        "candidate": FakeArm("candidate", lambda: LevelScorer(clock, weak=True)),
    }


def signed_run(root: Path, plan: Plan) -> RunFolder:
    """Run the pilot on its own log, and sign its go."""
    run = RunFolder.create(plan, root)
    write_log(root / "plant.parquet", plant(0, JUDGED_UNTIL))
    dataset = pilot.prepare(plan, root, run, quiet)
    clock = FakeClock()
    arms = level_arms(clock)
    for role, arm in arms.items():
        arm.fit(dataset, run.models / role, quiet)
    with pytest.MonkeyPatch.context() as patch:
        # What a page shows says nothing of who signed.
        patch.setattr(signing, "draw", lambda evidence: {})
        # A replay collects before every leg, which takes longer than a leg of so few rows.
        patch.setattr(gc, "collect", lambda *generation: 0)
        replay(plan, dataset, run.models, run.replay, quiet, arms=arms, clock=clock)
        assert pilot.judge(plan, run).verdict == "go"
        pilot.sign(run, "go", "Ada", "As judged.", override=False, on_progress=quiet)
    return run


def take(run: RunFolder, *frames: pl.DataFrame) -> Monitored:
    """Give frames to the monitor as one log, and time its arms with a clock that they move."""
    clock = FakeClock()
    log = write_log(run.path.parent / "new.parquet", *frames)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "build_arms", lambda plan: level_arms(clock))
        patch.setattr(gc, "collect", lambda *generation: 0)
        return course.take_looks(run.load_plan(), run, [log], Path(), quiet, clock=clock)
