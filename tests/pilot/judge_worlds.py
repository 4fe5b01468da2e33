"""Simulated logs in which the true loss of event recall is known, and judged as real ones are.

Whether an event is lost depends on a strain that is shared: a hidden state that comes and goes with
a memory of its own, and what the events of one incident have in common. The candidate loses an
event when its strain is in the upper tail of share `lost` of a normal distribution, and wins one,
independently, with a chance such that the share `won` is won: the true loss is `lost` - `won`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import norm
from tests.pilot.judge_cases import MINUTE, START, make_plan, make_slice

from sma_pilot.judge.findings import Findings, status_of
from sma_pilot.judge.measurements import AlignedSlice
from sma_pilot.judge.quality import Quality, measure_quality
from sma_pilot.judge.quality_gate import MINIMUM_BLOCKS, judge_quality
from sma_pilot.judge.result import Status
from sma_pilot.judge.statistics import (
    Estimate,
    bootstrap,
    choose_block,
    leave_out_stretches,
    recall_loss,
)
from sma_pilot.plan import Plan

ENTITIES = 5
VALIDATION_BINS = 100
MISSED_BY_BOTH = 0.15
RESAMPLES = 200
MERGED_BINS = 2
"""Events closer than this are one incident."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What a log is drawn from.

    Attributes
    ----------
    events : int
        Expected number of events.
    lost, won : float
        Share of events that only the incumbent, and only the candidate, catches.
    memory : float
        Bins after which the hidden state keeps 1/e of itself; 0 for events that are independent.
    together : int
        Events of one incident, in bins one after another and on different entities.
    bins : int
        Bins of judged time.
    """

    events: int
    lost: float
    won: float = 0.02
    memory: float = 0.0
    together: int = 1
    bins: int = 1000

    def draw(self, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        """Draw the bins of events [E] and what becomes of each: 1 lost, -1 won, 0 as before."""
        chance = self.events / self.bins / self.together
        first = np.flatnonzero(generator.random(self.bins // self.together) < chance)
        at = (first[:, None] * self.together + np.arange(self.together)).ravel()
        strain = generator.normal(size=at.size)
        if self.together > 1:
            shared = np.repeat(generator.normal(size=first.size), self.together)
            strain = np.sqrt(0.5) * (strain + shared)
        if self.memory:
            strain = np.sqrt(0.5) * (strain + hidden_state(generator, self.bins, self.memory)[at])
        lost = strain > norm.ppf(1 - self.lost)
        won = ~lost & (generator.random(at.size) < self.won / (1 - self.lost))
        return at, lost.astype(np.int8) - won.astype(np.int8)

    def slices(self, generator: np.random.Generator) -> tuple[AlignedSlice, AlignedSlice]:
        """Draw validation and judged rows with the scores of both arms."""
        at, fate = self.draw(generator)
        both_miss = (fate == 0) & (generator.random(at.size) < MISSED_BY_BOTH)
        label = np.zeros(self.bins, np.int32)
        label[at] = 1
        scores = {}
        for arm, missed in (("incumbent", -1), ("candidate", 1)):
            scores[arm] = np.zeros(self.bins, np.float32)
            scores[arm][at] = np.where((fate == missed) | both_miss, -1.0, 1.0)
        quiet = np.zeros(VALIDATION_BINS)
        validation = _rows(quiet, dict.fromkeys(scores, quiet), 0, "validation")
        return validation, _rows(label, scores, VALIDATION_BINS, "judged")


def hidden_state(generator: np.random.Generator, bins: int, memory: float) -> NDArray[np.float64]:
    """Draw a stationary first-order autoregression [B] of unit variance."""
    kept = np.exp(-1 / memory)
    noise = generator.normal(size=bins) * np.sqrt(1 - kept**2)
    noise[0] /= np.sqrt(1 - kept**2)
    return np.asarray(lfilter([1], [1, -kept], noise))


def world_plan(**quality: Any) -> Plan:
    """A plan with a limit of 0.1 and few resamples; events in neighbouring bins are an incident."""
    usual = {"alarm_merge": f"{MERGED_BINS}m", "resamples": RESAMPLES}
    return make_plan(quality=usual | quality)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the judge makes of the lost and won events of one log."""

    estimate: Estimate
    blocks: int

    def status(self, limit: float) -> Status:
        """Return what the gate on quality would be."""
        if self.blocks < MINIMUM_BLOCKS:
            return "inconclusive"
        return status_of(self.estimate.low, self.estimate.high, limit)


def bound_world(
    world: World, generator: np.random.Generator, *, alpha: float = 0.05, block: int | None = None
) -> Bound:
    """Draw a log and bound its loss of event recall as the judge does, without all the rest."""
    return bound(*world.draw(generator), world, alpha=alpha, block=block)


def bound(
    at: NDArray[np.int64],
    fate: NDArray[np.int8],
    world: World,
    *,
    alpha: float = 0.05,
    block: int | None = None,
    seed: int = 0,
) -> Bound:
    """Bound the loss of events [E] in the bins `at`: 1 lost, -1 won, 0 as before.

    Parameters
    ----------
    block : int, optional
        Bins of a block; by default chosen as the judge chooses it.
    """
    worth = fate.astype(np.float64)
    loss, carries = np.zeros(world.bins), np.zeros(world.bins, dtype=bool)
    loss[at], carries[at] = worth - worth.mean(), True
    block = choose_block(loss, carries, floor=1) if block is None else block

    def mean_loss(weights: NDArray[np.float64]) -> float:
        weight = weights[at]
        total = weight.sum()
        return float(weight @ worth / total) if total else float("nan")

    statistics = {"loss": mean_loss}
    blocks = world.bins // block
    estimate = recall_loss(
        fate >= 0,
        fate <= 0,
        bootstrap(statistics, world.bins, block, RESAMPLES, seed)["loss"],
        leave_out_stretches(statistics, world.bins)["loss"],
        incidents=int((np.diff(at) >= MERGED_BINS).sum()) + 1,
        blocks=blocks,
        alpha=alpha,
    )
    return Bound(estimate=estimate, blocks=blocks)


def judge_world(world: World, plan: Plan, generator: np.random.Generator) -> tuple[Status, Quality]:
    """Draw a log and put it through the judge; return the status of its quality gate."""
    quality = measure_quality(*world.slices(generator), plan)
    findings = Findings()
    judge_quality(quality, plan, findings)
    return findings.gates[0].status, quality


def statuses(world: World, plan: Plan, logs: int, seed: int) -> dict[Status, int]:
    """Judge many logs of a world; return how often each status came out."""
    generator = np.random.default_rng(seed)
    counts: dict[Status, int] = {"pass": 0, "fail": 0, "inconclusive": 0}
    for _ in range(logs):
        counts[judge_world(world, plan, generator)[0]] += 1
    return counts


def _rows(label: Any, scores: dict[str, Any], first_bin: int, name: str) -> AlignedSlice:
    """Rows of entities that take turns, sorted as the judge has them.

    In each bin an entity has a row, and half a bin later a quiet one that ends any event.
    """
    bins = np.arange(len(label))
    entity = np.repeat(bins % ENTITIES, 2)
    time = START + MINUTE * (first_bin + np.repeat(bins, 2)) + np.tile([0, MINUTE // 2], bins.size)
    order = np.lexsort((time, entity))

    def with_quiet_rows(column: Any) -> NDArray[Any]:
        return np.stack([column, np.zeros_like(column)], axis=1).ravel()[order]

    return make_slice(
        with_quiet_rows(label),
        {arm: with_quiet_rows(score) for arm, score in scores.items()},
        entity=entity[order],
        time=time[order],
        name=name,
    )
