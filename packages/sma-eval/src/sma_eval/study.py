"""The study file: what is compared, what is tuned on the way, and what is held fixed.

`load_study` reads a TOML file into frozen models. Parameters have one of three roles, after the
Deep Learning Tuning Playbook (google-research/tuning_playbook): **scientific** ones are compared,
**nuisance** ones are tuned for each scientific value so that the comparison is fair, **fixed** ones
are the same everywhere. `Study.digest` is the fingerprint of everything that decides a figure.
"""

import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from sma_core.files import digest_of
from sma_eval.errors import FieldError
from sma_eval.resources import Resources
from sma_eval.scheduler import Asha, NoScheduler, Pbt, Scheduler
from sma_eval.search import GridSearch, Nuisance, OptunaSearch, Search
from sma_eval.section import MAX_TRIALS, Section, Seed, distinct
from sma_eval.tasks import TASKS, Task

# What a study decides elsewhere cannot be set a second time in a table of fixed values.
_MODEL_ELSEWHERE = {
    "architecture": "it is always the sparse modular model",
    "inputs": "the task decides it",
    "head": "the task decides it",
    "policy": "list it in scientific.policy",
    "pool": "list it in scientific.pool",
}
_TRAINING_ELSEWHERE = {
    "seed": "list it in seeds",
    "target_rate": "give it with a policy in scientific.policy",
}
# Tuning one of these would give one arm more data or compute than another, or another metric.
_BUDGET = ("max_steps", "batch_size", "window", "evaluate_every", "evaluate_batches", "patience")
_MODES = {"loss": "min", "accuracy": "max"}
_TASK_KINDS = [get_args(task.model_fields["kind"].annotation)[0] for task in TASKS]
# What a union's branches leave in the place of an error.
_BRANCHES = {*_TASK_KINDS, "int", "float", "list", "range"} | {
    get_args(section.model_fields["kind"].annotation)[0]
    for union in (Search, Scheduler)
    for section in get_args(get_args(union)[0])
}
Cost = Literal["flops_per_step", "latency_seconds", "state_bytes"]

Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
Rates = Annotated[
    tuple[Rate, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list | tuple) else (value,)),
    AfterValidator(distinct),
]


class PolicyEntry(BaseModel):
    """One routing policy: its kind, its fields, and the activation rates it is trained towards."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    kind: str
    target_rate: Rates | None = None
    """Learned policies only; each rate is an arm of its own."""

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the policy's configuration, as they stand in the file."""
        return dict(self.model_extra or {})


class Scientific(Section, frozen=True):
    """What is compared: every policy, at each of its rates, with every pool."""

    policy: Annotated[tuple[PolicyEntry, ...], AfterValidator(distinct)]
    """The first is the one that the others are compared with."""
    pool: Annotated[
        tuple[Annotated[tuple[dict[str, Any], ...], Field(min_length=1)], ...],
        AfterValidator(distinct),
    ] = (({"kind": "gated_attention"},),)
    """Each entry is a list of sub-modules."""


class Objective(Section, frozen=True):
    """The figure that chooses among nuisance values (on validation) and fills the table."""

    metric: Literal["loss", "accuracy"]
    mode: Literal["min", "max"]
    costs: Annotated[
        tuple[Cost, ...], AfterValidator(lambda costs: distinct(costs) if costs else costs)
    ] = ()
    """What a search by Optuna drives down beside: figures of `sma_eval.records.TrialResult`."""

    @model_validator(mode="after")
    def _mode_fits_metric(self) -> Self:
        if self.mode != _MODES[self.metric]:
            raise ValueError(
                f"mode: {self.metric} is better when it is "
                f"{'smaller' if self.mode == 'max' else 'larger'}: "
                f"write mode = {_MODES[self.metric]!r}"
            )
        return self


class Study(Section, frozen=True):
    """A whole study, decided beforehand."""

    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    description: str = ""
    task: Task
    model: dict[str, Any] = Field(default_factory=dict)
    """Fixed fields of `sma_core.ModelConfig`."""
    training: dict[str, Any]
    """Fixed fields of `sma_core.TrainingConfig`; ``max_steps`` is every arm's budget."""
    scientific: Scientific
    nuisance: Nuisance = Field(default_factory=dict)
    """Fields of `sma_core.TrainingConfig` with the values tried; the best stands for its arm."""
    search: Search = GridSearch(kind="grid")
    """How nuisance values are chosen."""
    scheduler: Scheduler = NoScheduler(kind="none")
    """Whether trials are stopped early, or changed on the way."""
    seeds: Annotated[tuple[Seed, ...], AfterValidator(distinct)]
    objective: Objective
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _each_field_has_one_place(self) -> Self:
        _refuse(self.model, _MODEL_ELSEWHERE, "model")
        _refuse(self.training, _TRAINING_ELSEWHERE, "training")
        _refuse(self.nuisance, _TRAINING_ELSEWHERE, "nuisance")
        if "max_steps" not in self.training:
            raise ValueError("training.max_steps: missing; it is the equal budget of every arm")
        for name in self.nuisance:
            if name == "checkpoint_every":
                raise ValueError(f"nuisance.{name}: decides no figure; set it in [training]")
            if name in _BUDGET:
                raise ValueError(
                    f"nuisance.{name}: part of the budget, which is equal for every "
                    "arm; set it in [training]"
                )
            if name in self.training:
                raise ValueError(f"nuisance.{name}: also fixed in [training]; keep one of the two")
        if self.objective.metric == "accuracy" and self.task.head == "forecast":
            raise ValueError("objective.metric: a forecast has no accuracy; write metric = 'loss'")
        return self

    @model_validator(mode="after")
    def _search_and_scheduler_go_together(self) -> Self:
        search, scheduler = self.search, self.scheduler
        search.check(self.nuisance)
        if isinstance(scheduler, Asha | Pbt) and search.count(self.nuisance) < 2:
            raise ValueError(
                f"scheduler.kind: {scheduler.kind!r} compares the choices of nuisance values of "
                "an arm, and there is only one; give several in [nuisance]"
            )
        if isinstance(scheduler, Pbt) and isinstance(search, OptunaSearch):
            raise ValueError(
                "scheduler.kind: 'pbt' changes the values itself, which Optuna would not learn "
                "of; write search.kind = 'random' or 'grid'"
            )
        if self.objective.costs and not isinstance(search, OptunaSearch):
            raise ValueError(
                "objective.costs: only search.kind = 'optuna' goes by them; leave them out, the "
                "report draws every front in any case"
            )
        if self.objective.costs and isinstance(scheduler, Asha):
            raise ValueError(
                "scheduler.kind: 'asha' stops trials by the objective alone, before their costs "
                "are known; leave out objective.costs, or write kind = 'none'"
            )
        return self

    @model_validator(mode="after")
    def _can_be_listed(self) -> Self:
        if isinstance(self.search, GridSearch):
            tried = {
                f"values of nuisance.{name}": len(values)
                for name, values in self.nuisance.items()
                if isinstance(values, tuple)
            }
        else:
            tried = {"samples": self.search.samples}
        factors = {
            "policies and rates": self._rates,
            "pools": len(self.scientific.pool),
            **tried,
            "seeds": len(self.seeds),
        }
        if (trials := math.prod(factors.values())) > MAX_TRIALS:
            product = " x ".join(f"{number} {name}" for name, number in factors.items())
            raise ValueError(
                f"{product} are {trials} trials; a study has at most {MAX_TRIALS}: try fewer values"
            )
        return self

    @property
    def choices(self) -> int:
        """Number of choices of nuisance values of every arm."""
        return self.search.count(self.nuisance)

    @property
    def trials(self) -> int:
        """Number of trials, those included that a search has yet to ask for."""
        return self._rates * len(self.scientific.pool) * self.choices * len(self.seeds)

    @property
    def _rates(self) -> int:
        return sum(len(policy.target_rate or (None,)) for policy in self.scientific.policy)

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides a figure; description and resources do not."""
        content = self.model_dump(mode="json", exclude={"description", "resources"})
        # Fields that came later are left out where they say what was always done, so that the
        # digest of a study from before them stays what it was.
        for name in ("search", "scheduler"):
            if getattr(self, name) == type(self).model_fields[name].default:
                del content[name]
        if not self.objective.costs:
            del content["objective"]["costs"]
        return digest_of(content)


def parse_study(text: str, where: str) -> Study:
    """Read a study from TOML text; `where` names it in errors.

    Raises
    ------
    FieldError
        When the text is no TOML or a field is missing, unknown or out of range; each line names
        the field.
    """
    try:
        content = tomllib.loads(text)
        _require_json(content, "", where)
        # Through JSON: there a list is the only sequence, so that strict models take it for tuples.
        return Study.model_validate_json(json.dumps(content))
    except FieldError:
        raise
    except ValidationError as error:
        # By place: each branch of `int | float` complains about the same value.
        lines = dict(_describe(problem) for problem in error.errors(include_url=False))
        text = "\n".join(f"{where}: {place}{message}" for place, message in lines.items())
        raise FieldError(text) from error
    # A number of thousands of digits or brackets without end are no TOMLDecodeError.
    except (ValueError, RecursionError) as error:
        raise FieldError(f"{where}: not valid TOML: {error}") from error


def load_study(path: Path) -> Study:
    """Read the study file at `path`; see `parse_study` for the errors."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FieldError(f"{path}: cannot read the study: {error}") from error
    return parse_study(text, str(path))


def _refuse(table: dict[str, Any], elsewhere: dict[str, str], name: str) -> None:
    for field, reason in elsewhere.items():
        if field in table:
            raise ValueError(f"{name}.{field}: cannot be set here: {reason}")


def _describe(problem: Any) -> tuple[str, str]:
    # A union's branches leave their tags in the location; a user knows fields only.
    parts = [part for part in problem["loc"] if part not in _BRANCHES]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    message = problem["msg"].removeprefix("Value error, ")
    message = message.replace("Extra inputs are not permitted", "unknown field")
    return (f"{place.removeprefix('.')}: " if place else "", message)


def _require_json(value: Any, place: str, where: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _require_json(item, f"{place}.{name}", where)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _require_json(item, f"{place}[{i}]", where)
    elif not isinstance(value, str | int | float) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise FieldError(
            f"{where}: {place.removeprefix('.')}: must be text, a finite number, true or false, "
            f"not {value}"
        )
