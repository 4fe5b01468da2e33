"""What a run in MLflow tells of a trial: names of its tags, its parameters and its figures.

docs/studies.md lists them, under "In MLflow".
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sma_eval.effects import policy_level
from sma_eval.naming import leaves
from sma_eval.records import TrialRecord
from sma_eval.space import Trial

STUDY_TAG = "sma.study"
TRIAL_TAG = "sma.trial"
ARM_TAG = "sma.arm"
POLICY_TAG = "sma.policy"
POOL_TAG = "sma.pool"
STATUS_TAG = "sma.status"

# Groups of metrics on a run's page: what was seen while training, then what came of it.
LIVE = "live"
FLOPS = "cost/flops_per_step"
LATENCY = "cost/latency_us"
MEMORY = "cost/state_bytes"
# A chart of MLflow's shows two decimals: no seconds of a step.
_COSTS: Mapping[str, tuple[str, float]] = {
    FLOPS: ("flops_per_step", 1),
    "cost/dense_flops_per_step": ("dense_flops_per_step", 1),
    LATENCY: ("latency_seconds", 1e6),
    MEMORY: ("state_bytes", 1),
    "cost/parameters": ("parameters", 1),
    "cost/best_step": ("best_step", 1),
    "cost/training_seconds": ("seconds", 1),
}


def factor_tags(trial: Trial) -> dict[str, str]:
    """Return what tells a trial from others; short names, a column is too narrow for more."""
    return {ARM_TAG: trial.arm, POLICY_TAG: policy_level(trial), POOL_TAG: trial.pool}


def description(trial: Trial) -> dict[str, Any]:
    """Return a trial's parameters: first what tells one from another at sight, then every field."""
    model = {k: v for k, v in trial.model.items() if k not in ("policy", "pool")}
    factors = {
        "arm": trial.arm,
        "policy": trial.policy,
        "pool": trial.pool,
        "target_rate": trial.target_rate,
        "nuisance": trial.nuisance_label,
        "seed": trial.seed,
    }
    told = {name: value for name, value in factors.items() if value not in (None, "")}
    chosen = {
        "policy": trial.model["policy"],
        "pool": dict(enumerate(trial.model["pool"])),
        "model": model,
        "training": trial.training,
    }
    return {**told, **dict(leaves(chosen))}


def figures(record: TrialRecord) -> Iterator[tuple[str, float]]:
    """Yield name and value of each figure of a trial that has them."""
    result = record.result
    if result is None:
        return
    for split, metrics in (("validation", result.validation), ("test", result.test)):
        for name, value in metrics.items():
            yield f"{split}/{name}", value
    for layer, rates in enumerate(result.activation):
        for m, (member, rate) in enumerate(zip(record.trial.model["pool"], rates, strict=True)):
            yield f"activation/layer_{layer}.{m}_{member['kind']}", rate
    for name, (field, scale) in _COSTS.items():
        if (value := getattr(result, field)) is not None:
            yield name, scale * value
