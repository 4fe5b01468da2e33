"""Frozen configurations: what a model is, in plain values that travel as JSON.

Every dataclass checks itself when it is made and names the field that is wrong. Members of a
family (routing policies, sub-modules) and whole architectures carry a tag, ``kind`` or
``architecture``; defining a subclass makes its tag known to `config_from_dict`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sma_core.config_checks import (
    Checked,
    check_choice,
    check_flag,
    check_instance,
    check_integer,
    check_number,
    check_shares,
)
from sma_core.config_family import Family, config_to_dict, from_plain
from sma_core.errors import ConfigError
from sma_core.policy_configs import (
    AlwaysConfig,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    RandomConfig,
    TemperedSoftmaxConfig,
)
from sma_core.submodule_configs import (
    GatedAttentionConfig,
    Position,
    Score,
    SubModuleConfig,
    SwiGLUConfig,
)

__all__ = [
    "AlwaysConfig",
    "ArchitectureConfig",
    "GRUConfig",
    "GatedAttentionConfig",
    "HeadConfig",
    "HeadKind",
    "InputConfig",
    "ModelConfig",
    "NeverConfig",
    "Norm",
    "PeriodicConfig",
    "PolicyConfig",
    "Position",
    "RandomConfig",
    "Score",
    "SubModuleConfig",
    "SwiGLUConfig",
    "TemperedSoftmaxConfig",
    "TransformerConfig",
    "config_from_dict",
    "config_to_dict",
]

HeadKind = Literal["forecast", "step_classification", "sequence_classification"]
Norm = Literal["layer", "batch", "scale"]


@dataclass(frozen=True, kw_only=True)
class InputConfig(Checked):
    """The channels of a time step.

    Parameters
    ----------
    numeric
        Number of real-valued channels; NaN in one means missing.
    categorical
        Vocabulary size of each categorical channel.
    """

    numeric: int = 0
    categorical: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_integer(self, "numeric", 0)
        if not isinstance(self.categorical, list | tuple):
            raise ConfigError(f"categorical: must be a list of sizes, not {self.categorical!r}")
        for i, size in enumerate(self.categorical):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(f"categorical[{i}]: must be a size of at least 1, not {size!r}")
        object.__setattr__(self, "categorical", tuple(self.categorical))
        if not self.numeric and not self.categorical:
            raise ConfigError("numeric, categorical: a model needs at least one input channel")


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Checked):
    """What the model predicts.

    Parameters
    ----------
    kind
        ``forecast``: every numeric channel of the next step; ``step_classification``: class
        logits at each step; ``sequence_classification``: class logits of the mean over steps.
    outputs
        Channels or classes.
    """

    kind: HeadKind
    outputs: int

    def __post_init__(self) -> None:
        check_choice(self, "kind", HeadKind)
        check_integer(self, "outputs", 1)


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig(Family):
    """Family of whole models, told apart by ``architecture``; these fields they all have."""

    tag: ClassVar[str] = "architecture"
    architecture: ClassVar[str]

    inputs: InputConfig
    head: HeadConfig
    width: int = 64
    layers: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_instance(self, "inputs", InputConfig)
        check_instance(self, "head", HeadConfig)
        check_integer(self, "width", 1)
        check_integer(self, "layers", 1)
        check_number(self, "dropout", 0.0, 1.0, bounds="[)")
        if self.head.kind == "forecast" and self.head.outputs != self.inputs.numeric:
            raise ConfigError(
                f"head.outputs: a forecast predicts every numeric channel "
                f"({self.inputs.numeric}), not {self.head.outputs}"
            )

    @property
    def causal(self) -> bool:
        """Whether a step sees nothing after itself, so that the model can run in a stream."""
        return True


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ArchitectureConfig):
    """A stack of Sparse Modular Activation layers.

    Parameters
    ----------
    inputs, head
        What goes in and what comes out.
    width
        D, width of the residual stream.
    layers
        Number of layers.
    states
        N, EMA states per channel.
    policy
        How each layer decides which sub-modules run.
    pool
        The M sub-modules of each layer.
    bidirectional
        Both directions of time; such a model cannot stream.
    prenorm
        Normalise the input of a layer rather than its output. Without it the first layer reads
        the channels as they are: they must be standardised.
    norm
        ``layer``, ``batch`` (running averages in evaluation) or ``scale`` (one gain in all).
    dropout
        Probability in [0, 1).
    ema
        ``chunked`` matrix products or ``fft``; the same numbers.
    dispatch
        Layout of the active rows, ``packed`` or ``padded``; the same numbers. ``capacity``: so
        many slots a sequence, known beforehand; where more rows are active the surest run.
    capacity
        Slots as a share in (0, 1] of the steps, for all sub-modules or for each; the layout
        ``capacity`` alone reads it.
    """

    architecture: ClassVar[str] = "sma"

    states: int = 16
    policy: PolicyConfig = field(default_factory=TemperedSoftmaxConfig)
    pool: tuple[SubModuleConfig, ...] = field(default_factory=lambda: (GatedAttentionConfig(),))
    bidirectional: bool = False
    prenorm: bool = True
    norm: Norm = "layer"
    ema: Literal["chunked", "fft"] = "chunked"
    dispatch: Literal["packed", "padded", "capacity"] = "packed"
    capacity: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self, "states", 1)
        check_instance(self, "policy", PolicyConfig)
        if not isinstance(self.pool, list | tuple) or not self.pool:
            raise ConfigError(f"pool: must hold at least one sub-module, not {self.pool!r}")
        object.__setattr__(self, "pool", tuple(self.pool))
        for i, member in enumerate(self.pool):
            if not isinstance(member, SubModuleConfig):
                raise ConfigError(f"pool[{i}]: must be a SubModuleConfig, not {member!r}")
        for name in ("bidirectional", "prenorm"):
            check_flag(self, name)
        check_choice(self, "norm", Norm)
        check_choice(self, "ema", Literal["chunked", "fft"])
        check_choice(self, "dispatch", Literal["packed", "padded", "capacity"])
        check_shares(self, "capacity", len(self.pool))

    @property
    def causal(self) -> bool:
        """Whether a step sees nothing after itself, so that the model can run in a stream."""
        return not self.bidirectional

    @property
    def capacity_shares(self) -> tuple[float, ...]:
        """Capacity of each member of the pool."""
        each = self.capacity
        return each if isinstance(each, tuple) else (each,) * len(self.pool)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ArchitectureConfig):
    """The dense incumbent: a causal pre-norm Transformer with rotary positions.

    Parameters
    ----------
    inputs, head, width, layers, dropout
        As in `ModelConfig`.
    heads
        Attention heads; they divide the width into even parts.
    hidden_width
        Width of the feed-forward block.
    window
        W: a step sees itself and the W steps before it.
    """

    architecture: ClassVar[str] = "transformer"

    heads: int = 4
    hidden_width: int = 256
    window: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heads", "hidden_width", "window"):
            check_integer(self, name, 1)
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"heads: width {self.width} does not split into {self.heads} heads of even width"
            )


@dataclass(frozen=True, kw_only=True)
class GRUConfig(ArchitectureConfig):
    """The recurrent incumbent: gated recurrent units, one layer on the other.

    Parameters
    ----------
    inputs, head, width, layers
        As in `ModelConfig`; the width is that of a layer's hidden state, too.
    dropout
        Between layers.
    """

    architecture: ClassVar[str] = "gru"


def config_from_dict(data: Mapping[str, Any]) -> ArchitectureConfig:
    """Build the configuration of a model from its plain form.

    Raises
    ------
    ConfigError
        A tag or field is unknown, missing or out of range; the message names it by its path.
    """
    return from_plain(ArchitectureConfig, data)
