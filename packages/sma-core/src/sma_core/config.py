"""Frozen configurations: what a model is, in plain values that travel as JSON.

Every dataclass checks itself when it is made and names the field that is wrong. Members of a
family (routing policies, sub-modules) and whole architectures carry a tag, ``kind`` or
``architecture``; defining a subclass makes its tag known to `config_from_dict`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args, get_origin

from sma_core.config_checks import (
    Checked,
    check_choice,
    check_flag,
    check_instance,
    check_integer,
    check_number,
    check_shares,
)
from sma_core.errors import ConfigError

HeadKind = Literal["forecast", "step_classification", "sequence_classification"]
Score = Literal["softmax", "relu2"]
Position = Literal["rotary", "simple", "local"]
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


class _Tagged(Checked):
    """A family of configurations: each direct subclass is a family, theirs are its members."""

    tag: ClassVar[str]
    members: ClassVar[dict[str, type]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if _Tagged in cls.__bases__:
            cls.members = {}
            return
        name = cls.__dict__.get(cls.tag)
        if not isinstance(name, str):
            raise TypeError(f"{cls.__name__} must define the class attribute {cls.tag!r}")
        cls.members[name] = cls


class PolicyConfig(_Tagged):
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


class SubModuleConfig(_Tagged):
    """Family of sub-modules, told apart by ``kind``."""

    tag = "kind"
    kind: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class GatedAttentionConfig(SubModuleConfig):
    """Single-head gated attention over the last active rows.

    Parameters
    ----------
    query_width, value_width
        Width Z of queries and keys, width H of values and gate.
    window
        W: a row sees itself and the W active rows before it (and after it, when bidirectional).
    score
        ``softmax``, or ``relu2``: the squared ReLU.
    position
        ``rotary`` on the time index; ``simple``: a learned bias by distance in time; ``local``: a
        learned bias by distance in active rows.
    max_positions
        Length of the table of ``simple``; farther distances share its last value.
    """

    kind: ClassVar[str] = "gated_attention"
    query_width: int = 32
    value_width: int = 128
    window: int = 64
    score: Score = "softmax"
    position: Position = "rotary"
    max_positions: int = 1024

    def __post_init__(self) -> None:
        for name in ("query_width", "value_width", "window", "max_positions"):
            check_integer(self, name, 1)
        check_choice(self, "score", Score)
        check_choice(self, "position", Position)
        if self.position == "rotary" and self.query_width % 2:
            raise ConfigError(f"query_width: rotary needs an even width, not {self.query_width}")


@dataclass(frozen=True, kw_only=True)
class SwiGLUConfig(SubModuleConfig):
    """Gated feed-forward unit on each active row by itself: it needs no history."""

    kind: ClassVar[str] = "swiglu"
    hidden_width: int = 128

    def __post_init__(self) -> None:
        check_integer(self, "hidden_width", 1)


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig(_Tagged):
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


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain form of a configuration, ready for JSON, with its tag first."""
    fields = dataclasses.fields(config)
    tagged = {config.tag: getattr(config, config.tag)} if isinstance(config, _Tagged) else {}
    return tagged | {f.name: _plain(getattr(config, f.name)) for f in fields}


def config_from_dict(data: Mapping[str, Any]) -> ArchitectureConfig:
    """Build the configuration of a model from its plain form.

    Raises
    ------
    ConfigError
        A tag or field is unknown, missing or out of range; the message names it by its path.
    """
    return _decode(ArchitectureConfig, data)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _decode(cls: Any, data: Any) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"must be a table of fields, not {data!r}")
    fields = dict(data)
    if issubclass(cls, _Tagged):
        tag = fields.pop(cls.tag, None)
        if not isinstance(tag, str) or tag not in cls.members:
            raise ConfigError(f"{cls.tag}: {tag!r} is not one of {', '.join(sorted(cls.members))}")
        cls = cls.members[tag]
    known = {f.name: f for f in dataclasses.fields(cls)}
    for name in fields:
        if name not in known:
            raise ConfigError(f"{name}: unknown field; the known ones are {', '.join(known)}")
    for name, f in known.items():
        required = f.default is f.default_factory is dataclasses.MISSING
        if required and name not in fields:
            raise ConfigError(f"{name}: missing")
    return cls(**{name: _decode_field(name, known[name].type, v) for name, v in fields.items()})


def _decode_field(name: str, hint: Any, value: Any) -> Any:
    nested = dataclasses.is_dataclass(hint) or _is_family(hint)
    if nested:
        return _at(name, hint, value)
    if get_origin(hint) is tuple and _is_family(get_args(hint)[0]):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name}: must be a list, not {value!r}")
        return tuple(_at(f"{name}[{i}]", get_args(hint)[0], item) for i, item in enumerate(value))
    return value


def _is_family(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, _Tagged)


def _at(path: str, cls: Any, value: Any) -> Any:
    """Decode a nested configuration; its errors speak of the field by its whole path."""
    try:
        return _decode(cls, value)
    except ConfigError as error:
        text = str(error)
        joint = " " if text.startswith("must") else "."
        raise ConfigError(f"{path}{':' if joint == ' ' else ''}{joint}{text}") from None
