"""Which nuisance values are tried: as many for every arm, none twice, the same ones again."""

import math
import random
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.eval.studies import study_text, tiny_study, tiny_trials

from sma_eval.errors import FieldError, StudyError
from sma_eval.search import GridSearch, OptunaSearch, RandomSearch, Range, Tried, draw
from sma_eval.study import parse_study

RATE = Range(low=1e-4, high=1e-1, log=True)
NUISANCE: dict[str, Any] = {"learning_rate": RATE, "rate_weight": (0.1, 1.0)}


def with_tables(nuisance: str, *tables: str) -> dict[str, str]:
    return {"mode": "\n\n".join(['mode = "max"', f"[nuisance]\n{nuisance}", *tables])}


@given(
    low=st.floats(-1e6, 1e6, allow_subnormal=False),
    width=st.floats(1e-3, 1e6),
    log=st.booleans(),
    whole=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_draws_stay_within_their_range(
    low: float, width: float, log: bool, whole: bool, seed: int
) -> None:
    low = abs(low) + 1e-3 if log else low
    values = Range(low=low, high=low + max(width, 1.0), log=log)
    value = values.draw(random.Random(seed), whole=whole)
    assert values.low <= value <= values.high
    assert isinstance(value, int) == whole


def test_a_logarithmic_range_gives_each_decade_its_share() -> None:
    rng = random.Random(0)
    values = [RATE.draw(rng, whole=False) for _ in range(6000)]
    for exponent in (-4, -3, -2):
        share = sum(10**exponent <= v < 10 ** (exponent + 1) for v in values) / len(values)
        assert share == pytest.approx(1 / 3, abs=5 * math.sqrt(2 / 9 / len(values)))


def test_integers_are_drawn_for_fields_that_take_them() -> None:
    drawn = draw({"warmup_steps": Range(low=1, high=9)}, random.Random(0))
    assert isinstance(drawn["warmup_steps"], int)


@pytest.mark.parametrize("search", [RandomSearch, OptunaSearch])
def test_choices_are_distinct_and_the_same_again(search: Any) -> None:
    if search is OptunaSearch:
        pytest.importorskip("optuna")
    kind: Any = "optuna" if search is OptunaSearch else "random"
    first = search(kind=kind, samples=4, seed=3).known(NUISANCE)
    assert first == search(kind=kind, samples=4, seed=3).known(NUISANCE)
    assert first != search(kind=kind, samples=4, seed=4).known(NUISANCE)
    assert len({tuple(choice.values()) for choice in first}) == 4


def test_as_many_samples_as_combinations_are_the_grid_in_another_order() -> None:
    lists: dict[str, Any] = {"learning_rate": (1e-3, 1e-2, 1e-1), "rate_weight": (0.1, 1.0)}
    grid = GridSearch(kind="grid").known(lists)
    drawn = RandomSearch(kind="random", samples=6, seed=1).known(lists)
    assert sorted(map(str, drawn)) == sorted(map(str, grid))
    assert drawn != grid


def test_every_arm_is_tried_with_the_same_choices() -> None:
    changes = with_tables(
        "learning_rate = { low = 1e-4, high = 1e-1, log = true }",
        '[search]\nkind = "random"\nsamples = 5',
    )
    trials = tiny_trials(**changes)
    assert len(trials) == tiny_study(**changes).trials == 2 * 5 * 2
    by_arm: dict[str, list[Any]] = {}
    for trial in trials:
        by_arm.setdefault(trial.arm, []).append((trial.seed, trial.nuisance))
    one, other = by_arm.values()
    assert one == other


@pytest.mark.parametrize(
    ("nuisance", "tables", "expected"),
    [
        ("learning_rate = { low = 1e-3, high = 1e-2 }", "", "a grid has no range"),
        ("learning_rate = { low = 1e-2, high = 1e-3 }", "", "low: must be below high (0.001)"),
        ("learning_rate = { low = 0.0, high = 1.0, log = true }", "", "must be above 0 where log"),
        ("learning_rate = { low = 1e-3 }", "", "nuisance.learning_rate.high: Field required"),
        ("checkpoint_every = [1, 2]", "", "nuisance.checkpoint_every: decides no figure"),
        ("", '[search]\nkind = "random"\nsamples = 2', "there is nothing to search"),
        ("", '[search]\nkind = "magic"', "search: "),
        ("", '[search]\nkind = "random"', "search.samples: Field required"),
        (
            "learning_rate = [1e-3, 1e-2]",
            '[search]\nkind = "random"\nsamples = 3',
            "search.samples: 3, and [nuisance] has 2 combinations",
        ),
        ("", '[scheduler]\nkind = "asha"\ngrace = 4', "there is only one"),
        ("learning_rate = [1e-3, 1e-2]", '[scheduler]\nkind = "asha"', "scheduler.grace: Field"),
        (
            "learning_rate = [1e-3, 1e-2]",
            '[scheduler]\nkind = "asha"\ngrace = 4\nreduction = 1',
            "scheduler.reduction: ",
        ),
        (
            "learning_rate = [1e-3, 1e-2]",
            '[scheduler]\nkind = "pbt"\ninterval = 4\nquantile = 0.6',
            "scheduler.quantile: ",
        ),
        (
            "learning_rate = [1e-3, 1e-2]",
            '[scheduler]\nkind = "none"\ngrace = 4',
            "scheduler.grace: unknown field",
        ),
        (
            "learning_rate = [1e-3, 1e-2, 1e-1]",
            '[search]\nkind = "optuna"\nsamples = 3\n[scheduler]\nkind = "pbt"\ninterval = 4',
            "'pbt' changes the values itself",
        ),
    ],
)
def test_a_table_that_cannot_be_is_named(nuisance: str, tables: str, expected: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse_study(study_text(**with_tables(nuisance, tables)), "study.toml")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("costs", "tables", "expected"),
    [
        ('["speed"]', "", "objective.costs[0]: "),
        ('["state_bytes", "state_bytes"]', "", "'state_bytes' is listed twice"),
        ('["state_bytes"]', "", "only search.kind = 'optuna' goes by them"),
        (
            '["state_bytes"]',
            '[search]\nkind = "optuna"\nsamples = 2\n[scheduler]\nkind = "asha"\ngrace = 4',
            "'asha' stops trials by the objective alone",
        ),
    ],
)
def test_costs_that_nothing_goes_by_are_refused(costs: str, tables: str, expected: str) -> None:
    nuisance = "[nuisance]\nlearning_rate = [1e-3, 1e-2]"
    text = study_text(mode=f'mode = "max"\ncosts = {costs}\n\n{nuisance}\n\n{tables}')
    with pytest.raises(FieldError) as caught:
        parse_study(text, "study.toml")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ('"asha"\ngrace = 12', "scheduler.grace: 12 steps leave nothing to stop"),
        ('"asha"\ngrace = 6', "scheduler.grace: 6 steps are no multiple of"),
        ('"pbt"\ninterval = 12', "scheduler.interval: 12 steps leave nothing to change"),
        ('"pbt"\ninterval = 5', "scheduler.interval: 5 steps are no multiple of"),
    ],
)
def test_a_comparison_without_a_measurement_is_refused(scheduler: str, expected: str) -> None:
    with pytest.raises(FieldError, match="scheduler") as caught:
        tiny_trials(
            **with_tables("learning_rate = [1e-3, 1e-2]", f"[scheduler]\nkind = {scheduler}")
        )
    assert str(caught.value).startswith(expected)


def test_what_is_the_default_keeps_the_digest_of_studies_from_before() -> None:
    plain = with_tables("learning_rate = [1e-3, 1e-2]")
    said = with_tables(
        "learning_rate = [1e-3, 1e-2]", '[search]\nkind = "grid"', '[scheduler]\nkind = "none"'
    )
    other = with_tables("learning_rate = [1e-3, 1e-2]", '[scheduler]\nkind = "asha"\ngrace = 4')
    assert tiny_study(**plain).digest == tiny_study(**said).digest
    assert tiny_study(**plain).digest != tiny_study(**other).digest
    # Recorded before either table existed.
    assert tiny_study().digest.startswith("81b8bb82f243")


def test_optuna_that_is_absent_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"pip install 'sma-eval\[optuna\]'"):
        OptunaSearch(kind="optuna", samples=2).known(NUISANCE)


def told(search: OptunaSearch, objectives: int = 1) -> list[Tried]:
    """Let a search ask for all its choices; best are 1e-2 for the first, 1e-3 for the second."""
    tried: list[Tried] = []
    asked = search.known(NUISANCE)
    while asked:
        for choice in asked:
            rate = math.log10(choice["learning_rate"])
            values = ((rate + 2.0) ** 2, (rate + 3.0) ** 2)[:objectives]
            tried.append(Tried(choice=choice, objectives=values))
        asked = search.following(NUISANCE, tried, objectives)
    return tried


def test_optuna_finds_what_draws_do_not() -> None:
    pytest.importorskip("optuna")
    search = OptunaSearch(kind="optuna", samples=24, batch=3)
    tried = told(search)
    assert len(tried) == 24
    late = [one.objectives[0] for one in tried[12:] if one.objectives]
    # Draws have 1 on average.
    assert sum(late) / len(late) < 0.6
    # The same results lead to the same choices, also in another process that sees but them.
    assert search.following(NUISANCE, tried[:12]) == [one.choice for one in tried[12:15]]


def test_optuna_goes_by_several_objectives() -> None:
    pytest.importorskip("optuna")
    rates = [
        one.choice["learning_rate"]
        for seed in (0, 1)
        for one in told(OptunaSearch(kind="optuna", samples=24, batch=3, seed=seed), 2)[6:]
    ]
    # What is best lies between the two optima. Of draws, 47 % are as near.
    assert sum(10**-3.2 <= rate <= 10**-1.8 for rate in rates) > 0.6 * len(rates)


def test_a_choice_that_failed_or_was_stopped_is_not_asked_for_again() -> None:
    pytest.importorskip("optuna")
    lists: dict[str, Any] = {"learning_rate": (1e-3, 1e-2, 3e-2), "rate_weight": (0.1, 1.0)}
    search = OptunaSearch(kind="optuna", samples=6, batch=2)
    tried = [Tried(choice=choice) for choice in search.known(lists)]
    tried += [Tried(choice=c, curve={4: 1.0}) for c in search.following(lists, tried)]
    tried += [Tried(choice=c, objectives=(1.0,)) for c in search.following(lists, tried)]
    assert len({tuple(one.choice.values()) for one in tried}) == 6
    assert search.following(lists, tried) == []


def test_bounds_of_samples_are_told() -> None:
    with pytest.raises(ValidationError):
        RandomSearch(kind="random", samples=0)
