"""Configurations of the sub-modules that a pool can hold."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sma_core.config_checks import check_choice, check_integer
from sma_core.config_family import Family
from sma_core.errors import ConfigError

Score = Literal["softmax", "relu2"]
Position = Literal["rotary", "simple", "local"]


class SubModuleConfig(Family):
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
class LocalConvolutionConfig(SubModuleConfig):
    """Depthwise-separable convolution over neighbouring active rows.

    Parameters
    ----------
    kernel_size
        K: a row sees itself and the K - 1 active rows before it (and after it, when
        bidirectional).
    """

    kind: ClassVar[str] = "local_convolution"
    kernel_size: int = 4

    def __post_init__(self) -> None:
        check_integer(self, "kernel_size", 1)


@dataclass(frozen=True, kw_only=True)
class FullAttentionConfig(SubModuleConfig):
    """Multi-head softmax attention over all active rows, rotary on the time index.

    Parameters
    ----------
    heads, head_width
        Number of heads and width of each, which is even.
    max_rows
        Most rows that a row sees, itself included: the newest ones. It bounds the memory of a
        stream, and a whole sequence obeys it too, so that both give the same numbers at any
        length. Up to this many active rows nothing is out of sight.
    """

    kind: ClassVar[str] = "full_attention"
    heads: int = 4
    head_width: int = 16
    max_rows: int = 1024

    def __post_init__(self) -> None:
        for name in ("heads", "head_width", "max_rows"):
            check_integer(self, name, 1)
        if self.head_width % 2:
            raise ConfigError(f"head_width: rotary needs an even width, not {self.head_width}")


@dataclass(frozen=True, kw_only=True)
class ActiveEMAConfig(SubModuleConfig):
    """Multi-head EMA that decays by active row rather than by time step.

    Parameters
    ----------
    states
        N, EMA states per channel.
    """

    kind: ClassVar[str] = "active_ema"
    states: int = 16

    def __post_init__(self) -> None:
        check_integer(self, "states", 1)
