"""The tables ``[search]`` and ``[nuisance]``: which values are tried for each arm.

A **choice** is one value for each nuisance parameter. Every arm gets the same number of them, by
the same rule, so that no arm is tuned more than another. Given beforehand (``grid``, ``random``)
the choices are even the same for every arm; ``optuna`` asks for them arm by arm, in batches, going
by what the choices before have shown.
"""

import dataclasses
import importlib.util
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from sma_core.training import TrainingConfig
from sma_eval.errors import StudyError
from sma_eval.section import MAX_TRIALS, Section, Seed, distinct

Choice = Mapping[str, int | float]
"""A value for each nuisance parameter."""

# Combinations that are not listed for their number.
_MANY = 100_000
# Draws in a row without a new choice after which there is taken to be none.
_DRAWS = 10_000
# Times that Optuna is asked for each choice before it is taken to insist on old ones.
_ASKED = 20


class Range(Section, frozen=True):
    """A nuisance parameter's values from `low` to `high`, both ends included."""

    low: int | float
    high: int | float
    log: bool = False
    """Whether each factor is as likely as each other, and not each difference."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low: must be below high ({self.high}), not {self.low}")
        if self.log and self.low <= 0:
            raise ValueError(f"low: must be above 0 where log = true, not {self.low}")
        return self

    def draw(self, rng: random.Random, *, whole: bool) -> int | float:
        """Draw a value; `whole` ones are integers."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + (high - low) * rng.random()
        return self.within(math.exp(value) if self.log else value, whole=whole)

    def within(self, value: float, *, whole: bool) -> int | float:
        """Return the allowed value nearest to `value`."""
        nearest = min(max(value, self.low), self.high)
        return (
            min(max(round(nearest), math.ceil(self.low)), math.floor(self.high))
            if whole
            else nearest
        )


Values = Annotated[
    Annotated[tuple[int | float, ...], AfterValidator(distinct), Tag("list")]
    | Annotated[Range, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, dict | Range) else "list"),
]
Nuisance = dict[str, Values]


def is_whole(name: str) -> bool:
    """Whether a field of `sma_core.TrainingConfig` takes integers alone."""
    return any(f.name == name and f.type is int for f in dataclasses.fields(TrainingConfig))


def draw(nuisance: Nuisance, rng: random.Random) -> Choice:
    """Draw a choice."""
    return {
        name: values.draw(rng, whole=is_whole(name))
        if isinstance(values, Range)
        else rng.choice(values)
        for name, values in nuisance.items()
    }


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of a choice.

    Parameters
    ----------
    choice
        The choice.
    objectives
        What the search goes by, means over seeds, turned so that less is better; None when a trial
        of it failed or was stopped.
    curve
        The first of them by optimiser step, as far as a stopped one came.
    """

    choice: Choice
    objectives: tuple[float, ...] | None = None
    curve: Mapping[int, float] = field(default_factory=dict)


class GridSearch(Section, frozen=True):
    """Every combination of the values."""

    kind: Literal["grid"]

    def count(self, nuisance: Nuisance) -> int:
        """Count the choices of an arm."""
        return math.prod(len(values) for values in nuisance.values() if isinstance(values, tuple))

    def check(self, nuisance: Nuisance) -> None:
        """Raise ValueError when there is a range."""
        for name, values in nuisance.items():
            if isinstance(values, Range):
                raise ValueError(
                    f"nuisance.{name}: a grid has no range; list the values, or write "
                    "search.kind = 'random'"
                )

    def known(self, nuisance: Nuisance) -> list[Choice]:
        """List the choices that are known beforehand: all of them."""
        return [
            dict(zip(nuisance, values, strict=True))
            for values in itertools.product(*map(_listed, nuisance.values()))
        ]


class RandomSearch(Section, frozen=True):
    """Independent draws, none twice, the same for every arm."""

    kind: Literal["random"]
    samples: Annotated[int, Field(ge=1, le=MAX_TRIALS)]
    """Choices of every arm."""
    seed: Seed = 0
    """Of the draws."""

    def count(self, nuisance: Nuisance) -> int:
        """Count the choices of an arm."""
        return self.samples

    def check(self, nuisance: Nuisance) -> None:
        """Raise ValueError when there are not that many choices."""
        _require_so_many(self.samples, nuisance)

    def known(self, nuisance: Nuisance) -> list[Choice]:
        """List the choices that are known beforehand: all of them."""
        rng = random.Random(self.seed)
        return list(itertools.islice(_new_draws(nuisance, rng, []), self.samples))


class OptunaSearch(Section, frozen=True):
    """Optuna's tree-structured Parzen estimator, for one objective or several (extra ``optuna``).

    Each arm has a search of its own, which learns from that arm's choices alone and from means over
    all seeds. Choices are asked for in batches and told in their order, so the same results lead to
    the same choices, whichever trial ended first and whether the study was stopped on the way.
    """

    kind: Literal["optuna"]
    samples: Annotated[int, Field(ge=1, le=MAX_TRIALS)]
    """Choices of every arm."""
    batch: Annotated[int, Field(ge=1)] = 4
    """Choices of an arm that are asked for at a time: more keep a cluster busy, fewer learn more.
    The first batch is drawn at random."""
    seed: Seed = 0
    """Of the draws."""

    def count(self, nuisance: Nuisance) -> int:
        """Count the choices of an arm."""
        return self.samples

    def check(self, nuisance: Nuisance) -> None:
        """Raise ValueError when there are not that many choices."""
        _require_so_many(self.samples, nuisance)

    def known(self, nuisance: Nuisance) -> list[Choice]:
        """List the choices that are known beforehand: the first batch, the same for every arm.

        Raises
        ------
        StudyError
            When Optuna is not installed.
        """
        _require_optuna()
        rng = random.Random(self.seed)
        return list(itertools.islice(_new_draws(nuisance, rng, []), min(self.batch, self.samples)))

    def following(
        self, nuisance: Nuisance, tried: Sequence[Tried], objectives: int = 1
    ) -> list[Choice]:
        """Ask for the choices that follow those of an arm that have been tried.

        Parameters
        ----------
        nuisance
            The parameters with their values.
        tried
            Every choice of the arm, in order.
        objectives
            How many there are.

        Returns
        -------
        list of Choice
            A batch; empty once the arm has had its samples.
        """
        wanted = min(self.batch, self.samples - len(tried))
        if wanted <= 0:
            return []
        _require_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = {name: _distribution(name, values) for name, values in nuisance.items()}
        seed = random.Random(f"{self.seed}/{len(tried)}").getrandbits(32)
        study = optuna.create_study(
            directions=[optuna.study.StudyDirection.MINIMIZE] * objectives,
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.batch),
        )
        for one in tried:
            study.add_trial(_told(one, space))
        taken = [dict(one.choice) for one in tried]
        asked: list[Choice] = []
        for _ in range(_ASKED * wanted):
            choice = study.ask(space).params
            if choice not in taken:
                taken.append(choice)
                asked.append(choice)
            if len(asked) == wanted:
                return asked
        # It insists on what was tried: the rest is drawn.
        rest = _new_draws(nuisance, random.Random(seed), taken)
        return [*asked, *itertools.islice(rest, wanted - len(asked))]


Search = Annotated[GridSearch | RandomSearch | OptunaSearch, Field(discriminator="kind")]


def _listed(values: Any) -> tuple[int | float, ...]:
    assert isinstance(values, tuple)  # noqa: S101  (a grid has no ranges, see `check`)
    return values


def _new_draws(nuisance: Nuisance, rng: random.Random, taken: Sequence[Choice]) -> Iterator[Choice]:
    """Draw choices that are not taken yet, none twice, until no new one comes."""
    seen = {tuple(choice.values()) for choice in taken}
    barren = 0
    for choice in _draws(nuisance, rng):
        values = tuple(choice.values())
        barren = barren + 1 if values in seen else 0
        if barren == _DRAWS:
            return
        if not barren:
            seen.add(values)
            yield choice


def _draws(nuisance: Nuisance, rng: random.Random) -> Iterator[Choice]:
    """Draw choices; where there are few, each of them once in random order."""
    size = math.prod(len(v) if isinstance(v, tuple) else _MANY for v in nuisance.values())
    if size < _MANY:
        grid = list(GridSearch(kind="grid").known(nuisance))
        yield from rng.sample(grid, size)
    else:
        while True:
            yield draw(nuisance, rng)


def _require_so_many(samples: int, nuisance: Nuisance) -> None:
    if not nuisance:
        raise ValueError("search: there is nothing to search; give values in [nuisance]")
    sizes = []
    for name, values in nuisance.items():
        if isinstance(values, tuple):
            sizes.append(len(values))
        elif is_whole(name):
            sizes.append(math.floor(values.high) - math.ceil(values.low) + 1)
        else:
            return  # as many as there are floats
    if samples > (most := math.prod(sizes)):
        raise ValueError(
            f"search.samples: {samples}, and [nuisance] has {most} combinations; write "
            f"samples = {most} or fewer, or search.kind = 'grid'"
        )


def _require_optuna() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise StudyError(
            "search.kind: 'optuna' needs the package optuna, which is an extra: "
            "pip install 'sma-eval[optuna]'"
        )


def _distribution(name: str, values: Any) -> Any:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(values, tuple):
        return CategoricalDistribution(values)
    if is_whole(name):
        return IntDistribution(math.ceil(values.low), math.floor(values.high), log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)


def _told(tried: Tried, space: Mapping[str, Any]) -> Any:
    """Make a trial as Optuna keeps it: complete, pruned where it was stopped, or failed."""
    from optuna.trial import TrialState, create_trial

    if tried.objectives is not None:
        state = TrialState.COMPLETE
    else:
        state = TrialState.PRUNED if tried.curve else TrialState.FAIL
    return create_trial(
        state=state,
        params=dict(tried.choice),
        distributions=dict(space),
        values=None if tried.objectives is None else list(tried.objectives),
        intermediate_values=dict(tried.curve) if state is TrialState.PRUNED else None,
    )
