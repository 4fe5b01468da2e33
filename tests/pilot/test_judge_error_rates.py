"""How often the judge errs, in short; `experiments/judge_error_rates.py` is the long form."""

import numpy as np
import pytest
from tests.pilot.judge_worlds import World, bound, judge_world, world_plan
from tests.pilot.judge_worlds import bound_world as draw_and_bound
from tests.tolerances import TOLERANCES

from sma_pilot.judge.metrics import EVENT_RECALL
from sma_pilot.judge.provable import Assumption, Evidence, smallest_provable_loss

CLOSE = TOLERANCES["float64"].relative
ALPHA, LIMIT = 0.05, 0.1


def shares(world: World, logs: int, seed: int, limit: float = LIMIT) -> dict[str, float]:
    """Judge many logs of a world; return the share of each status."""
    generator = np.random.default_rng(seed)
    found = [draw_and_bound(world, generator).status(limit) for _ in range(logs)]
    return {status: found.count(status) / logs for status in ("pass", "fail", "inconclusive")}


def three_sigma(chance: float, logs: int) -> float:
    return 3 * np.sqrt(chance * (1 - chance) / logs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("together", [1, 4])
def test_the_short_way_is_what_the_judge_does(seed, together):
    world = World(events=120, lost=0.12, memory=10, together=together)
    at, fate = world.draw(np.random.default_rng(seed))
    plan = world_plan()
    status, quality = judge_world(world, plan, np.random.default_rng(seed))
    short = bound(at, fate, world, seed=plan.seed)
    estimate = quality.candidate.losses[EVENT_RECALL]
    found, known = vars(short.estimate), vars(estimate)
    assert found.pop("note") == known.pop("note")
    assert found == pytest.approx(known, rel=CLOSE)
    assert short.blocks == quality.blocks
    assert short.status(plan.quality.loss_limit) == status


@pytest.mark.parametrize("memory", [0, 10])
def test_a_true_loss_at_the_limit_seldom_passes(memory):
    logs = 150
    found = shares(World(events=120, lost=0.12, memory=memory), logs, seed=1)
    assert found["pass"] <= ALPHA + three_sigma(ALPHA, logs)
    assert found["fail"] <= ALPHA + three_sigma(ALPHA, logs)


def test_a_large_loss_fails_and_none_passes():
    assert shares(World(events=200, lost=0.32), 30, seed=2)["fail"] > 0.9
    assert shares(World(events=200, lost=0.02), 30, seed=3)["pass"] > 0.9


@pytest.mark.parametrize("events", [60, 200])
def test_a_candidate_without_loss_passes_as_often_as_planned(events):
    logs, power = 100, 0.8
    world = World(events=events, lost=0.025, won=0.025)
    evidence = Evidence(
        events=events, incidents=events, blocks=world.bins, days=1.0, design_effect=1.0
    )
    assumed = Assumption(discordance=world.lost + world.won, alpha=ALPHA, power=power)
    limit = smallest_provable_loss(evidence, assumed)
    assert shares(world, logs, seed=4, limit=limit)["pass"] == pytest.approx(
        power, abs=three_sigma(power, logs)
    )
