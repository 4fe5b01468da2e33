"""From a study to its trials: every combination once, each with the same budget.

An **arm** is one scientific value: a policy, at one activation rate if it learns towards one, with
one pool. A **trial** is an arm with one choice of nuisance values and one seed. What Optuna chooses
while a study runs is made into trials here too, and is checked as the rest is.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

from sma_core.config import (
    HeadConfig,
    InputConfig,
    ModelConfig,
    config_from_dict,
    config_to_dict,
)
from sma_core.errors import ConfigError
from sma_core.files import digest_of
from sma_core.routing import policy_class
from sma_core.training import TrainingConfig
from sma_core.training_checks import check_compile
from sma_eval.errors import FieldError
from sma_eval.scheduler import Pbt
from sma_eval.search import Choice
from sma_eval.study import Study


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One scientific value.

    Parameters
    ----------
    policy, pool
        What people call its policy, without the target, and its pool.
    label
        What people call the arm; different for every arm of a study.
    model
        The model, whole, in plain form.
    target_rate
        Activation rate that training steers towards; None where the policy decides by itself.
    """

    policy: str
    pool: str
    label: str
    model: Mapping[str, Any]
    target_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run.

    Parameters
    ----------
    id
        Hash of task, model and training: the same in every study that holds this very trial.
    arm
        Label of its arm.
    policy, pool, target_rate
        Of its arm.
    nuisance
        The nuisance values it tries, by field.
    population
        Whether it is a member of a population, which changes its nuisance values as it trains.
    seed
        Of initialisation and of the order of the data.
    model, training
        Configurations, whole, in plain form.
    """

    id: str
    arm: str
    policy: str
    pool: str
    target_rate: float | None
    seed: int
    nuisance: Choice = field(default_factory=dict)
    population: bool = False
    model: Mapping[str, Any]
    training: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What people call it; different for every trial of a study."""
        return " ".join(filter(None, [self.arm, self.nuisance_label, f"seed={self.seed}"]))

    @property
    def nuisance_label(self) -> str:
        """Its nuisance values as text; empty when there are none. A member began with them."""
        return " ".join(f"{name}={value}" for name, value in self.nuisance.items())

    @property
    def choice(self) -> str:
        """What it shares with the trials of other seeds that it stands for an arm with."""
        return "" if self.population else self.nuisance_label

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the JSON form."""
        return cls(**content)


def expand(study: Study, inputs: InputConfig, head: HeadConfig) -> tuple[Trial, ...]:
    """List the trials of a study, the seeds outermost: half a study already compares all arms.

    Of a study that Optuna searches these are the first ones; `follow` makes the others.

    Parameters
    ----------
    study
        The study.
    inputs, head
        What the task's data set holds and what is learned from it.

    Raises
    ------
    FieldError
        A field of a model, policy, sub-module or training is unknown or out of range, or two arms
        are the same; the message names the place in the study file.
    """
    arms = list_arms(study, inputs, head)
    choices = study.search.known(study.nuisance)
    trials = tuple(
        _trial(study, arm, nuisance, seed)
        for seed in study.seeds
        for arm in arms
        for nuisance in choices
    )
    study.scheduler.check(trials[0].training)
    for cost in study.objective.costs:
        if cost != "flops_per_step" and not config_from_dict(arms[0].model).causal:
            raise FieldError(
                f"objective.costs: {cost} is measured of streams, and a model that looks ahead "
                "(model.causal = false) has none"
            )
    return trials


def follow(study: Study, like: Trial, choices: Sequence[Choice]) -> tuple[Trial, ...]:
    """List the trials of more choices of nuisance values for an arm, with every seed.

    Parameters
    ----------
    study
        The study.
    like
        Any trial of the arm.
    choices
        What a search has asked for.
    """
    arm = Arm(
        policy=like.policy,
        pool=like.pool,
        label=like.arm,
        model=like.model,
        target_rate=like.target_rate,
    )
    return tuple(_trial(study, arm, nuisance, seed) for seed in study.seeds for nuisance in choices)


def list_arms(study: Study, inputs: InputConfig, head: HeadConfig) -> list[Arm]:
    """List every policy at each of its rates with every pool; the errors are those of `expand`."""
    arms: dict[str, Arm] = {}
    for (i, policy), (j, pool) in itertools.product(
        enumerate(study.scientific.policy), enumerate(study.scientific.pool)
    ):
        model = _model(study, inputs, head, i, j)
        if policy.target_rate and not policy_class(model.policy).learns:
            raise FieldError(
                f"scientific.policy[{i}].target_rate: policy {policy.kind!r} does not learn, its "
                "own fields set its rate; leave the target out"
            )
        plain = config_to_dict(model)
        for rate in policy.target_rate or (None,):
            named = {
                "policy": _label({"kind": policy.kind, **policy.fields}),
                "pool": " + ".join(_label(member) for member in pool),
            }
            label = named["policy"] + ("" if rate is None else f" @ {rate}")
            if len(study.scientific.pool) > 1:
                label += " | " + named["pool"]
            arm = Arm(**named, label=label, model=plain, target_rate=rate)
            # Written differently they may still be the same, when a field states its default.
            other = arms.setdefault(digest_of({"model": plain, "target_rate": rate}), arm)
            if other is not arm:
                raise FieldError(
                    f"scientific: arms {other.label!r} and {label!r} are the same; keep one"
                )
    return list(arms.values())


def _model(study: Study, inputs: InputConfig, head: HeadConfig, i: int, j: int) -> ModelConfig:
    policy = study.scientific.policy[i]
    plain = {
        **study.model,
        "architecture": ModelConfig.architecture,
        "inputs": config_to_dict(inputs),
        "head": config_to_dict(head),
        "policy": {"kind": policy.kind, **policy.fields},
        "pool": list(study.scientific.pool[j]),
    }
    try:
        return cast(ModelConfig, config_from_dict(plain))
    except ConfigError as error:
        raise FieldError(_place(str(error), i, j)) from error


def _place(message: str, i: int, j: int) -> str:
    """Say the configuration's path as the path in the study file."""
    for prefix, place in (
        ("policy", f"scientific.policy[{i}]"),
        ("pool", f"scientific.pool[{j}]"),
    ):
        if message.startswith(prefix):
            return place + message.removeprefix(prefix)
    return f"model.{message}"


def _trial(study: Study, arm: Arm, nuisance: Choice, seed: int) -> Trial:
    values = {**study.training, **nuisance, "seed": seed, "target_rate": arm.target_rate}
    whole = study.task.steps
    if whole is not None:
        values.setdefault("window", whole)
    known = [f.name for f in dataclasses.fields(TrainingConfig)]
    for name in values:
        if name not in known:
            table = "nuisance" if name in nuisance else "training"
            raise FieldError(
                f"{table}.{name}: unknown field; the known ones are {', '.join(known)}"
            )
    try:
        settings = TrainingConfig(**values)
        if settings.compile != "none":
            check_compile(config_from_dict(arm.model), settings)
        training = settings.to_dict()
    except ConfigError as error:
        named = str(error).partition(":")[0]
        table = "nuisance" if named in nuisance else "training"
        raise FieldError(f"{table}.{error}") from error
    # A window that cuts a sequence would ask for tokens that the model never saw.
    if whole is not None and training["window"] < whole:
        raise FieldError(
            f"training.window: a sequence of the task has {whole} steps; "
            "leave the window out, or give at least as many"
        )
    content = {
        "task": study.task.model_dump(mode="json"),
        "model": arm.model,
        "training": training,
    }
    population = isinstance(study.scheduler, Pbt)
    if population:  # the same values are only where it begins
        content["population"] = True
    return Trial(
        id=digest_of(content)[:12],
        arm=arm.label,
        policy=arm.policy,
        pool=arm.pool,
        target_rate=arm.target_rate,
        nuisance=dict(nuisance),
        population=population,
        seed=seed,
        model=arm.model,
        training=training,
    )


def _label(member: Mapping[str, Any]) -> str:
    fields = ", ".join(_pairs({k: v for k, v in member.items() if k != "kind"}))
    return f"{member['kind']}({fields})" if fields else str(member["kind"])


def _pairs(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _pairs(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={value}"
