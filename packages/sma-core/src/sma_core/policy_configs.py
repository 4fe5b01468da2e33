"""Configurations of routing policies: the default, fixed ones, and other learned ones."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sma_core.config_checks import (
    Checked,
    check_choice,
    check_instance,
    check_integer,
    check_number,
)
from sma_core.config_family import Family
from sma_core.errors import ConfigError

Schedule = Literal["linear", "cosine", "exponential"]


class PolicyConfig(Family):
    """Family of routing policies, told apart by ``kind``."""

    tag = "kind"
    kind: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class TemperedSoftmaxConfig(PolicyConfig):
    """Argmax decision; gradient through the confidence of a tempered softmax.

    Parameters
    ----------
    init_scale
        The temperature of each sub-module starts at ``init_scale * sqrt(width)`` and is learned.
    """

    kind: ClassVar[str] = "tempered_softmax"
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "init_scale", 0.0, float("inf"), bounds="()")


@dataclass(frozen=True, kw_only=True)
class AlwaysConfig(PolicyConfig):
    """Run every sub-module at every step: the dense twin."""

    kind: ClassVar[str] = "always"


@dataclass(frozen=True, kw_only=True)
class NeverConfig(PolicyConfig):
    """Run no sub-module: the EMA alone."""

    kind: ClassVar[str] = "never"


@dataclass(frozen=True, kw_only=True)
class PeriodicConfig(PolicyConfig):
    """Run every sub-module at each position that ``stride`` divides."""

    kind: ClassVar[str] = "periodic"
    stride: int

    def __post_init__(self) -> None:
        check_integer(self, "stride", 1)


@dataclass(frozen=True, kw_only=True)
class RandomConfig(PolicyConfig):
    """Run with probability ``rate``, fixed by a hash of seed, layer, sub-module and position."""

    kind: ClassVar[str] = "random"
    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_number(self, "rate", 0.0, 1.0)
        check_integer(self, "seed", 0)


@dataclass(frozen=True, kw_only=True)
class TemperatureConfig(Checked):
    """A temperature, and how it changes while a model is trained.

    Parameters
    ----------
    start
        Temperature at the first training step.
    end
        Temperature that the schedule ends with, and that evaluation uses; None: `start`, for good.
    schedule
        Way from one to the other: ``linear``, ``cosine`` (flat at both ends) or ``exponential``
        (by equal factors).
    share
        Share of the training steps that it takes, in (0, 1]; then the temperature stays.
    """

    start: float = 1.0
    end: float | None = None
    schedule: Schedule = "cosine"
    share: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "start", 0.0, math.inf, bounds="()")
        if self.end is not None:
            check_number(self, "end", 0.0, math.inf, bounds="()")
        check_choice(self, "schedule", Schedule)
        check_number(self, "share", 0.0, 1.0, bounds="(]")

    @property
    def final(self) -> float:
        """Temperature after the schedule."""
        return self.start if self.end is None else self.end

    def at(self, progress: float) -> float:
        """Temperature when a share `progress` of the training steps is done."""
        start, end, x = self.start, self.final, min(1.0, max(0.0, progress) / self.share)
        match self.schedule:
            case "linear":
                return start + (end - start) * x
            case "cosine":
                return end + (start - end) * (1.0 + math.cos(math.pi * x)) / 2.0
            case "exponential":
                return start * (end / start) ** x


@dataclass(frozen=True, kw_only=True)
class GumbelConfig(PolicyConfig):
    """Sampled decisions in training, the likelier one in evaluation; straight-through gradient.

    Parameters
    ----------
    temperature
        Of the softmax that the gradient is taken of: low is unbiased and noisy, high the reverse.
    """

    kind: ClassVar[str] = "gumbel"
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)

    def __post_init__(self) -> None:
        check_instance(self, "temperature", TemperatureConfig)


@dataclass(frozen=True, kw_only=True)
class SigmoidConfig(PolicyConfig):
    """Run where the run logit is larger; straight-through gradient of a sigmoid.

    Parameters
    ----------
    temperature
        Of the sigmoid that the gradient is taken of: a low one leaves a gradient only to steps that
        are close to flipping.
    """

    kind: ClassVar[str] = "sigmoid"
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)

    def __post_init__(self) -> None:
        check_instance(self, "temperature", TemperatureConfig)


@dataclass(frozen=True, kw_only=True)
class TopKConfig(PolicyConfig):
    """Run at a fixed share of each sequence: the steps with the largest margins.

    Which these are is known at the end of a sequence only. So a causal predictor is trained beside
    the router, and decides in streams and, unless told otherwise, in evaluation.

    Parameters
    ----------
    rate
        Share of the valid steps of a sequence that run in training, in (0, 1).
    evaluation
        Who decides when a model in evaluation sees a whole sequence: ``predictor``, with the
        numbers of a stream, or ``top_k``, which looks ahead and holds the rate.
    init_scale
        The temperature of each sub-module starts at ``init_scale * sqrt(width)`` and is learned.
    """

    kind: ClassVar[str] = "top_k"
    rate: float
    evaluation: Literal["predictor", "top_k"] = "predictor"
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "rate", 0.0, 1.0, bounds="()")
        check_choice(self, "evaluation", Literal["predictor", "top_k"])
        check_number(self, "init_scale", 0.0, math.inf, bounds="()")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(PolicyConfig):
    """Run where the margin is over a threshold that each sequence steers towards a rate.

    Parameters
    ----------
    rate
        Share of steps to run at, in (0, 1).
    block
        K: steps between two updates of the threshold.
    window
        W, a multiple of K: margins that the threshold is a quantile of, and steps in which a debt
        is paid back. After T steps the rate is off by less than
        ``(max(rate, 1 - rate) * W + K) / T``, whatever the data.
    init_scale
        The temperature of each sub-module starts at ``init_scale * sqrt(width)`` and is learned.
    """

    kind: ClassVar[str] = "budget"
    rate: float
    block: int = 16
    window: int = 64
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "rate", 0.0, 1.0, bounds="()")
        check_integer(self, "block", 1)
        check_integer(self, "window", 1)
        if self.window % self.block:
            raise ConfigError(
                f"window: must be a multiple of block ({self.block}), not {self.window}"
            )
        check_number(self, "init_scale", 0.0, math.inf, bounds="()")
