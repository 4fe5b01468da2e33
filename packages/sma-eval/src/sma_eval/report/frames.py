"""What a study found as data frames, for programs: one parquet file for each."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from sma_core.files import replacing
from sma_eval.analysis import ArmSummary, Estimate
from sma_eval.findings import Findings
from sma_eval.records import TrialRecord
from sma_eval.study import Study

_TRIAL_SCHEMA = {
    "id": pl.String,
    "arm": pl.String,
    "policy": pl.String,
    "pool": pl.String,
    "nuisance": pl.String,
    "seed": pl.Int64,
    "status": pl.String,
    "step": pl.Int64,
    "max_steps": pl.Int64,
    "target_rate": pl.Float64,
    "validation_objective": pl.Float64,
    "test_objective": pl.Float64,
    "activation_rate": pl.Float64,
    "activation": pl.List(pl.List(pl.Float64)),
    "flops_per_step": pl.Float64,
    "dense_flops_per_step": pl.Float64,
    "latency_seconds": pl.Float64,
    "state_bytes": pl.Int64,
    "parameters": pl.Int64,
    "best_step": pl.Int64,
    "seconds": pl.Float64,
    "checkpoint": pl.String,
    "reason": pl.String,
}
_EFFECT_SCHEMA = {
    "family": pl.String,
    "what": pl.String,
    "against": pl.String,
    **{f"difference_{part}": pl.Float64 for part in ("mean", "low", "high")},
    "seeds": pl.Int64,
    "p_value": pl.Float64,
    "adjusted_p": pl.Float64,
    "verdict": pl.String,
}
_RATE_SCHEMA = {
    "arm": pl.String,
    "policy": pl.String,
    "pool": pl.String,
    "target": pl.Float64,
    **{f"achieved_{part}": pl.Float64 for part in ("mean", "low", "high")},
    "missed": pl.Boolean,
}
_FRONT_SCHEMA = {
    "cost": pl.String,
    "arm": pl.String,
    "value": pl.Float64,
    "objective": pl.Float64,
}
_COUNTS = ("seeds", "failed", "stopped", "unfinished")
_ESTIMATES = ("objective", "difference")


def trials_frame(records: Sequence[TrialRecord], study: Study) -> pl.DataFrame:
    """One row per trial; figures are null until it finished."""
    metric = study.objective.metric
    rows = []
    for record in records:
        row = {
            "id": record.trial.id,
            "arm": record.trial.arm,
            "policy": record.trial.policy,
            "pool": record.trial.pool,
            "nuisance": record.trial.nuisance_label,
            "seed": record.trial.seed,
            "status": record.status,
            "step": record.step,
            "max_steps": record.trial.training["max_steps"],
            "target_rate": record.trial.target_rate,
            "checkpoint": record.checkpoint,
            "reason": record.reason,
        }
        if (result := record.result) is not None:
            row |= {
                "validation_objective": result.validation[metric],
                "test_objective": result.test[metric],
                "activation_rate": result.test["activation_rate"],
                "activation": [list(layer) for layer in result.activation],
                "flops_per_step": result.flops_per_step,
                "dense_flops_per_step": result.dense_flops_per_step,
                "latency_seconds": result.latency_seconds,
                "state_bytes": result.state_bytes,
                "parameters": result.parameters,
                "best_step": result.best_step,
                "seconds": result.seconds,
            }
        rows.append(row)
    return pl.DataFrame(rows, schema=_TRIAL_SCHEMA)


def arms_frame(rows: Sequence[ArmSummary]) -> pl.DataFrame:
    """One row per arm, as in the text table."""
    schema: dict[str, pl.DataType | type[pl.DataType]] = {}
    for name in ArmSummary.__dataclass_fields__:
        if name in _ESTIMATES:
            schema |= {f"{name}_{part}": pl.Float64 for part in ("mean", "low", "high")}
        else:
            text = name in ("arm", "nuisance")
            schema[name] = pl.String if text else pl.Int64 if name in _COUNTS else pl.Float64
    return pl.DataFrame([_flat(row) for row in rows], schema=schema)


def _flat(row: ArmSummary) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name in row.__dataclass_fields__:
        value = getattr(row, name)
        if name not in _ESTIMATES:
            flat[name] = value
        elif value is not None:
            flat |= _parts(name, value)
    return flat


def _parts(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {f"{name}_{part}": getattr(estimate, part) for part in ("mean", "low", "high")}


def effects_frame(found: Findings) -> pl.DataFrame:
    """One row per comparison, of family policy, pool, interaction or rival (of the best arm)."""
    families = {
        "policy": found.policies,
        "pool": found.pools,
        "interaction": found.interactions,
        "rival": found.rivals,
    }
    rows = [
        {
            "family": family,
            "what": d.what,
            "against": d.against,
            **_parts("difference", d.estimate),
            "seeds": d.seeds,
            "p_value": d.p_value,
            "adjusted_p": d.adjusted_p,
            "verdict": d.verdict,
        }
        for family, members in families.items()
        for d in members
    ]
    return pl.DataFrame(rows, schema=_EFFECT_SCHEMA)


def rates_frame(found: Findings) -> pl.DataFrame:
    """One row per arm that aims at an activation rate."""
    rows = [
        {
            "arm": gap.arm,
            "policy": gap.policy,
            "pool": gap.pool,
            "target": gap.target,
            **_parts("achieved", gap.achieved),
            "missed": gap.missed,
        }
        for gap in found.rates
    ]
    return pl.DataFrame(rows, schema=_RATE_SCHEMA)


def fronts_frame(rows: Sequence[ArmSummary], found: Findings) -> pl.DataFrame:
    """One row per arm of each front, cheapest first.

    ``cost`` names the front; that of all costs together is ``all`` and has no value.
    """
    of = {row.arm: row for row in rows}
    members = [
        (cost, arm, getattr(of[arm], cost)) for cost, arms in found.fronts.items() for arm in arms
    ]
    members += [("all", arm, None) for arm in found.joint_front]
    return pl.DataFrame(
        [
            {
                "cost": cost,
                "arm": arm,
                "value": value,
                "objective": None if (own := of[arm].objective) is None else own.mean,
            }
            for cost, arm, value in members
        ],
        schema=_FRONT_SCHEMA,
    )


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame whole or not at all."""
    with replacing(path) as partial:
        frame.write_parquet(partial)
