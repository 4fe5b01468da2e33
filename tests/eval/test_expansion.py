"""From a study to its trials: every combination once, the same budget for each."""

from collections import Counter
from pathlib import Path

import pytest
from tests.eval.studies import STUDY, study_text, tiny_trials

from sma_core.config import config_from_dict
from sma_core.training import TrainingConfig
from sma_eval.errors import FieldError
from sma_eval.experiment import list_trials
from sma_eval.space import Trial
from sma_eval.study import parse_study

POLICIES = """policy = [
    { kind = "always" },
    { kind = "tempered_softmax", target_rate = 0.5 },
]"""


def trials_of(text: str) -> tuple[Trial, ...]:
    return list_trials(parse_study(text, "study.toml"), Path())


def with_policies(*entries: str) -> str:
    return STUDY.replace(POLICIES, f"policy = [{', '.join(entries)}]")


def refused(text: str) -> str:
    with pytest.raises(FieldError) as caught:
        trials_of(text)
    return str(caught.value)


def test_every_combination_is_one_trial() -> None:
    pools = """pool = [
        [{ kind = "gated_attention", query_width = 4, value_width = 8, window = 8 }],
        [{ kind = "swiglu", hidden_width = 8 }],
    ]"""
    text = with_policies(
        '{ kind = "always" }', '{ kind = "tempered_softmax", target_rate = [0.25, 0.5] }'
    ).replace(
        'pool = [[{ kind = "gated_attention", query_width = 4, value_width = 8, window = 8 }]]',
        pools,
    )
    text += "\n[nuisance]\nlearning_rate = [1e-3, 1e-2]\nrate_weight = [0.1, 1.0]\n"
    trials = trials_of(text)
    assert len(trials) == 3 * 2 * 4 * 2
    assert len({trial.id for trial in trials}) == len(trials)
    assert len({trial.label for trial in trials}) == len(trials)
    arms = Counter(trial.arm for trial in trials)
    assert set(arms.values()) == {8}
    assert "tempered_softmax @ 0.25 | swiglu(hidden_width=8)" in arms
    assert {trial.policy for trial in trials} == {"always", "tempered_softmax"}
    # Half a study compares all arms already.
    assert {trial.seed for trial in trials[: len(trials) // 2]} == {0}


def test_every_arm_has_the_same_budget_and_only_its_own_differences() -> None:
    trials = tiny_trials()
    varying = {"seed", "target_rate"}
    same = [{k: v for k, v in t.training.items() if k not in varying} for t in trials]
    assert all(one == same[0] for one in same)
    assert same[0]["max_steps"] == 12
    assert [(t.training["seed"], t.training["target_rate"]) for t in trials] == [
        (0, None),
        (0, 0.5),
        (1, None),
        (1, 0.5),
    ]


def test_a_trial_holds_configurations_that_the_core_takes() -> None:
    for trial in tiny_trials():
        config_from_dict(trial.model)
        assert TrainingConfig(**trial.training).window == 8  # the whole sequence
        assert Trial.from_dict(trial.to_dict()) == trial


def test_a_trial_keeps_its_id_in_another_study_and_loses_it_with_the_data() -> None:
    alone = tiny_trials(seeds="seeds = [1]", name='name = "other"')
    assert [t.id for t in alone] == [t.id for t in tiny_trials() if t.seed == 1]
    other_data = tiny_trials(vocabulary="vocabulary = 3\nseed = 1")
    assert not {t.id for t in other_data} & {t.id for t in tiny_trials()}


def test_values_that_differ_late_are_told_apart() -> None:
    text = with_policies(
        '{ kind = "tempered_softmax", target_rate = [0.25, 0.25000001] }', '{ kind = "always" }'
    )
    text += "\n[nuisance]\nlearning_rate = [0.01, 0.0100000001]\n"
    trials = trials_of(text)
    assert len({trial.arm for trial in trials}) == 3
    assert len({trial.nuisance_label for trial in trials}) == 2


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        (('{ kind = "magic" }',), "scientific.policy[0]"),
        (('{ kind = "periodic", stride = 0 }',), "scientific.policy[0].stride"),
        (('{ kind = "always" }', '{ kind = "periodic", pace = 2 }'), "scientific.policy[1].pace"),
        (
            ('{ kind = "periodic", stride = 2, target_rate = 0.5 }',),
            "scientific.policy[0].target_rate: policy 'periodic' does not learn",
        ),
        (
            ('{ kind = "tempered_softmax" }', '{ kind = "tempered_softmax", init_scale = 1.0 }'),
            "arms 'tempered_softmax' and 'tempered_softmax(init_scale=1.0)' are the same",
        ),
    ],
)
def test_a_policy_that_cannot_be_is_named(policies: tuple[str, ...], expected: str) -> None:
    assert expected in refused(with_policies(*policies))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"width": "width = -1"}, "model.width"),
        ({"width": 'width = "wide"'}, "model.width"),
        ({"width": "wide = 8"}, "model.wide"),
        ({"batch_size": "batch_size = 0"}, "training.batch_size"),
        ({"batch_size": "batch = 8"}, "training.batch: unknown field"),
        ({"batch_size": "window = 7"}, "training.window: a sequence of the task has 8 steps"),
        ({"batch_size": 'compile = "all"'}, "training.compile: must be one of none, layers, model"),
        ({"batch_size": 'compile = "model"'}, "training.compile: rows of the layout 'packed'"),
        ({"batch_size": 'window = "all"'}, "training.window: must be a number"),
        ({"pool": 'pool = [[{ kind = "lstm" }]]'}, "scientific.pool[0][0]"),
        (
            {"pool": 'pool = [[{ kind = "swiglu" }, { kind = "swiglu", hidden_width = 0 }]]'},
            "scientific.pool[0][1].hidden_width",
        ),
    ],
)
def test_a_field_that_the_core_refuses_is_named_as_in_the_file(
    changes: dict[str, str], expected: str
) -> None:
    assert expected in refused(study_text(**changes))


def test_a_nuisance_value_that_the_core_refuses_is_named() -> None:
    assert "nuisance.dropout: unknown field" in refused(f"{STUDY}\n[nuisance]\ndropout = [0.1]\n")
    message = refused(f"{STUDY}\n[nuisance]\nlearning_rate = [-1.0]\n")
    assert message.startswith("nuisance.learning_rate: must be above 0")
