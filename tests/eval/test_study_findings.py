"""Findings against effects that were put in, and their words against the findings."""

import dataclasses
import random
from collections.abc import Callable

import pytest
from tests.eval.studies import finished, trial

from sma_eval.conclusion import conclude
from sma_eval.findings import find
from sma_eval.records import TrialRecord
from sma_eval.study import Objective

ACCURACY = Objective(metric="accuracy", mode="max")
LOSS = Objective(metric="loss", mode="min")
# As differences between seeds of one arm that another arm shares.
LUCK = {0: -0.05, 1: 0.02, 2: 0.04, 3: -0.01}


def record(
    policy: str,
    pool: str,
    seed: int,
    value: float,
    *,
    rate: float | None = None,
    validation: float | None = None,
    metric: str = "accuracy",
    achieved: float = 0.5,
    **costs: float,
) -> TrialRecord:
    label = policy + ("" if rate is None else f" @ {rate}")
    one = dataclasses.replace(
        trial(f"{label} | {pool}", seed), policy=policy, pool=pool, target_rate=rate
    )
    figures = {"loss": 1.0, "activation_rate": achieved}
    return finished(
        one,
        validation={**figures, metric: value if validation is None else validation},
        test={**figures, metric: value},
        **costs,
    )


def grid(effect: Callable[[str, str], float], noise: float = 0.0) -> list[TrialRecord]:
    """Two policies, two pools, four seeds whose luck every arm of a seed shares."""
    rng = random.Random(0)
    return [
        record(p, q, seed, 0.5 + effect(p, q) + luck + rng.gauss(0.0, noise))
        for p in ("clock", "router")
        for q in ("attention", "linear")
        for seed, luck in LUCK.items()
    ]


def test_effects_that_add_up_are_found_and_nothing_else() -> None:
    found = find(
        grid(lambda p, q: 0.1 * (p == "router") - 0.2 * (q == "linear"), noise=1e-3), ACCURACY
    )
    (policy,), (pool,), (interaction,) = found.policies, found.pools, found.interactions
    assert (policy.what, policy.against, policy.verdict) == ("router", "clock", "better")
    assert policy.estimate.mean == pytest.approx(0.1, abs=3e-3)
    assert (pool.what, pool.against, pool.verdict) == ("linear", "attention", "worse")
    assert pool.estimate.mean == pytest.approx(-0.2, abs=3e-3)
    assert interaction.verdict == "not distinguishable"
    assert found.best == "router | attention"
    # The luck that all arms of a seed share is noise of an arm, and none of a difference.
    assert found.noise is not None
    assert found.noise.deviation == pytest.approx(0.0392, abs=2e-3)
    assert policy.estimate.high is not None
    assert policy.estimate.high - policy.estimate.mean < 0.005


def test_an_interaction_is_a_difference_of_differences() -> None:
    found = find(grid(lambda p, q: 0.3 * (p == "router" and q == "linear"), 1e-3), ACCURACY)
    (interaction,) = found.interactions
    assert interaction.what == "router with linear"
    assert interaction.against == "clock with attention"
    assert interaction.verdict == "better"
    assert interaction.estimate.mean == pytest.approx(0.3, abs=5e-3)
    # Half the combinations have it, so each factor's mean shows half of it.
    assert found.policies[0].estimate.mean == pytest.approx(0.15, abs=5e-3)


def test_noise_alone_is_not_distinguishable_and_said_so() -> None:
    found = find(grid(lambda p, q: 0.0, noise=0.05), ACCURACY)
    verdicts = {d.verdict for d in (*found.policies, *found.pools, *found.interactions)}
    assert verdicts == {"not distinguishable"}
    text = "\n".join(conclude(found, ACCURACY))
    assert "Policies, against clock: not distinguishable: router (" in text
    assert "none of 1 interactions is distinguishable from 0" in text
    assert "better" not in text
    assert "worse" not in text


def test_for_a_loss_less_is_better() -> None:
    records = [
        record(p, "a", seed, value + luck, metric="loss")
        for p, value in (("clock", 1.0), ("router", 0.5))
        for seed, luck in LUCK.items()
    ]
    found = find(records, LOSS)
    assert found.policies[0].verdict == "better"
    assert found.best == "router | a"
    assert found.rivals[0].verdict == "worse"


def test_a_seed_without_all_its_trials_is_left_out_of_a_mean_over_pools() -> None:
    records = grid(lambda p, q: 0.1 * (p == "router"))
    at = {(r.trial.arm, r.trial.seed): i for i, r in enumerate(records)}
    lost = at["router | linear", 0]
    records[lost] = TrialRecord(trial=records[lost].trial, status="failed", reason="boom")
    # Would show in the mean, were the other pool's trial of that seed counted alone.
    records[at["router | attention", 0]] = record("router", "attention", 0, 9.0)
    assert find(records, ACCURACY).policies[0].estimate.mean == pytest.approx(0.1)

    without = [r for r in records if r.trial.arm != "router | linear" or r.result is None]
    found = find(without, ACCURACY)
    assert found.policies == ()  # no seed has both pools any more
    assert [d.what for d in found.rivals] == ["clock | attention", "clock | linear"]


def test_the_best_arm_is_chosen_on_validation_and_compared_on_test() -> None:
    records = [
        record(p, "a", seed, test + luck, validation=validation + luck)
        for p, validation, test in (("lucky", 0.9, 0.5), ("solid", 0.8, 0.6))
        for seed, luck in LUCK.items()
    ]
    found = find(records, ACCURACY)
    assert found.best == "lucky | a"
    (rival,) = found.rivals
    assert (rival.what, rival.verdict) == ("solid | a", "better")
    text = "\n".join(conclude(found, ACCURACY))
    assert "Best on validation is lucky | a. On the test split every other arm" in text


def test_one_seed_tells_nothing_apart() -> None:
    found = find([record("clock", "a", 0, 0.1), record("router", "a", 0, 0.9)], ACCURACY)
    assert found.noise is None
    assert found.policies[0].verdict == "too few seeds"
    text = "\n".join(conclude(found, ACCURACY))
    assert "no arm can be told apart" in text
    assert "better" not in text


def test_rates_are_set_beside_their_targets() -> None:
    records = [
        record("router", "a", seed, 0.5, rate=rate, achieved=achieved)
        for rate, achieved in ((0.5, 0.51), (0.25, 0.35))
        for seed in LUCK
    ]
    found = find(records, ACCURACY)
    assert [(gap.target, gap.achieved.mean) for gap in found.rates] == [
        (0.5, pytest.approx(0.51)),
        (0.25, pytest.approx(0.35)),
    ]
    text = "\n".join(conclude(found, ACCURACY))
    assert "router: 0.25 -> 0.350, 0.5 -> 0.510; 1 of 2 missed it; it moves by 0.64 when" in text
    assert [gap.missed for gap in found.rates] == [False, True]
    (response,) = found.responses
    assert response.slope.mean == pytest.approx((0.51 - 0.35) / (0.5 - 0.25))
    held = record("budget", "a", 0, 0.5)
    model = {**held.trial.model, "policy": {"kind": "budget", "rate": 0.5}}
    held = dataclasses.replace(held, trial=dataclasses.replace(held.trial, model=model))
    (gap,) = find([held], ACCURACY).rates
    assert gap.target == 0.5


def test_policies_that_hold_a_rate_themselves_are_one_policy_at_several_rates() -> None:
    records = []
    for rate in (0.25, 0.5):
        for pool, seed in (("a", 0), ("b", 0), ("a", 1), ("b", 1)):
            achieved = 0.1 + 0.6 * rate + 0.2 * seed * rate
            one = record(f"budget(rate={rate}, block=4)", pool, seed, 0.5, achieved=achieved)
            model = {**one.trial.model, "policy": {"kind": "budget", "rate": rate, "block": 4}}
            own = dataclasses.replace(one.trial, model=model)
            records.append(dataclasses.replace(one, trial=own))
    found = find(records, ACCURACY)
    assert {gap.policy for gap in found.rates} == {"budget(block=4)"}
    assert found.responses[0].slope.mean == pytest.approx((0.6 + 0.8) / 2)
    # A seed without one of the four trials has no line to draw.
    assert find(records[1:], ACCURACY).responses[0].slope.mean == pytest.approx(0.8)


def test_a_difference_that_chance_among_many_could_make_is_said_to_be_one() -> None:
    # t = 5.4 with 3 degrees of freedom: p = 0.012 alone, 0.11 as one of nine.
    differences = {"first": (0.04, 0.02, 0.03, 0.05)}
    differences |= {f"other {i}": (0.01, -0.01, 0.01, -0.01) for i in range(8)}
    records = [
        record(p, "a", seed, 0.5 + own[seed])
        for p, own in {"clock": (0.0, 0.0, 0.0, 0.0), **differences}.items()
        for seed in range(4)
    ]
    found = find(records, ACCURACY)
    first = found.policies[0]
    assert first.verdict == "better"
    assert first.p_value == pytest.approx(0.0123, abs=1e-4)
    assert first.adjusted_p == pytest.approx(9 * 0.0123, abs=1e-3)
    text = "\n".join(conclude(found, ACCURACY))
    assert "After Holm's correction for 9 comparisons, still told: none." in text


def test_the_cheapest_arm_that_is_not_told_from_the_best_is_named_with_what_it_may_lose() -> None:
    arms = {
        "dear": (40.0, (0.9, 0.91, 0.89)),
        "cheap": (10.0, (0.89, 0.912, 0.886)),
        "free": (1.0, (0.2, 0.3, 0.25)),
    }
    records = [
        record(p, "a", seed, value, flops_per_step=flops)
        for p, (flops, values) in arms.items()
        for seed, value in enumerate(values)
    ]
    found = find(records, ACCURACY)
    assert found.best == "dear | a"
    (bargain,) = found.bargains
    assert (bargain.cost, bargain.arm, bargain.share) == ("flops_per_step", "cheap | a", 0.25)
    # Differences of -0.01, 0.002, -0.004: mean -0.004, half an interval 4.303 * 0.006 / 3 ** 0.5.
    assert bargain.worse_by == pytest.approx(0.004 + 4.3027 * 0.006 / 3**0.5, abs=1e-5)
    text = "\n".join(conclude(found, ACCURACY))
    assert "Cheapest of these by FLOPs of a step: cheap | a, at 25% of the best arm's; " in text
    # Of an arm whose interval is wider than all arms lie apart nothing is known.
    wild = [record("wild", "a", seed, v, flops_per_step=2.0) for seed, v in enumerate((0, 1, 1))]
    assert [one.arm for one in find([*records, *wild], ACCURACY).bargains] == ["cheap | a"]


def test_the_joint_front_counts_every_cost_at_once() -> None:
    points = {  # objective, FLOPs, latency
        "best": (0.9, 30.0, 30.0),
        "few operations": (0.5, 10.0, 40.0),
        "fast": (0.5, 40.0, 10.0),
        "beaten": (0.5, 40.0, 40.0),
    }
    records = [
        record(p, "a", seed, value, flops_per_step=flops, latency_seconds=seconds)
        for p, (value, flops, seconds) in points.items()
        for seed in (0, 1)
    ]
    found = find(records, ACCURACY)
    assert found.fronts["flops_per_step"] == ("few operations | a", "best | a")
    assert set(found.joint_front) == {"best | a", "few operations | a", "fast | a"}


def test_a_front_holds_what_nothing_beats_in_both() -> None:
    points = {
        "cheap": (0.5, 10.0),
        "middling": (0.4, 20.0),
        "dear": (0.9, 30.0),
        "twin": (0.9, 30.0),
    }
    records = [
        record(p, "a", seed, value, flops_per_step=flops, latency_seconds=1.0 / flops)
        for p, (value, flops) in points.items()
        for seed in (0, 1)
    ]
    fronts = find(records, ACCURACY).fronts
    assert fronts["flops_per_step"] == ("cheap | a", "dear | a", "twin | a")
    assert fronts["latency_seconds"] == ("dear | a", "twin | a")
    assert "state_bytes" not in fronts  # never measured


def test_before_anything_has_finished_there_is_nothing_to_conclude() -> None:
    found = find([TrialRecord(trial=trial())], ACCURACY)
    assert conclude(found, ACCURACY) == [
        "No trial has finished yet, so there is nothing to conclude."
    ]
