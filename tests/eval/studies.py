"""Studies of seconds, and records of trials that never ran, for the tests of the laboratory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sma_core.files import digest_of
from sma_eval.experiment import list_trials
from sma_eval.records import TrialRecord, TrialResult
from sma_eval.space import Trial
from sma_eval.study import Study, parse_study

# MLflow's own tables, defined when its store is first imported.
MLFLOW_WARNING = "ignore:The ``noload`` loader strategy is deprecated"

STUDY: str = """\
version = 1
name = "tiny"
seeds = [0, 1]

[task]
kind = "selective_copying"
length = 6
tokens = 2
vocabulary = 3
train_sequences = 32
validation_sequences = 16
test_sequences = 16

[model]
width = 8
layers = 1
states = 2

[training]
max_steps = 12
batch_size = 8
warmup_steps = 2
evaluate_every = 4
checkpoint_every = 4

[scientific]
pool = [[{ kind = "gated_attention", query_width = 4, value_width = 8, window = 8 }]]
policy = [
    { kind = "always" },
    { kind = "tempered_softmax", target_rate = 0.5 },
]

[objective]
metric = "accuracy"
mode = "max"

[resources]
max_concurrent = 2
"""


def study_text(**replacements: str) -> str:
    """Return the tiny study with the lines of some fields replaced, or left out when empty."""
    lines: list[str] = STUDY.splitlines()
    for field, line in replacements.items():
        places = [i for i, old in enumerate(lines) if old.startswith(f"{field} =")]
        assert len(places) == 1, f"{field} stands {len(places)} times in the tiny study"
        lines[places[0]] = line
    return "\n".join(lines) + "\n"


def tiny_study(**replacements: str) -> Study:
    return parse_study(study_text(**replacements), "study.toml")


def tiny_trials(**replacements: str) -> tuple[Trial, ...]:
    return list_trials(tiny_study(**replacements), Path())


def result(objective: float = 0.5, *, metric: str = "accuracy", **changes: Any) -> TrialResult:
    """Return a result with this objective on both splits."""
    figures: dict[str, Any] = {
        "validation": {"loss": 1.0, metric: objective, "activation_rate": 0.5},
        "test": {"loss": 1.0, metric: objective, "activation_rate": 0.5},
        "activation": ((0.5,),),
        "flops_per_step": 50.0,
        "dense_flops_per_step": 100.0,
        "parameters": 10,
        "steps": 12,
        "best_step": 8,
        "seconds": 1.5,
    }
    return TrialResult(**(figures | changes))


def finished(trial: Trial, objective: float = 0.5, **changes: Any) -> TrialRecord:
    return TrialRecord(
        trial=trial,
        status="finished",
        step=12,
        checkpoint=f"ray/attempt-000/{trial.id}/checkpoint_000002",
        result=result(objective, **changes),
    )


def trial(arm: str = "a", seed: int = 0, nuisance: Mapping[str, float] | None = None) -> Trial:
    """Return a trial that is good for bookkeeping only."""
    tried = dict(nuisance or {})
    return Trial(
        id=digest_of([arm, seed, tried])[:12],
        arm=arm,
        policy=arm,
        pool="gated_attention",
        target_rate=None,
        seed=seed,
        nuisance=tried,
        model={"policy": {"kind": "always"}, "pool": [{"kind": "gated_attention"}]},
        training={"max_steps": 12},
    )
