"""Configurations of the pool's further members; the first two are in `sma_core.config`."""

from dataclasses import dataclass
from typing import ClassVar

from sma_core.config import SubModuleConfig
from sma_core.config_checks import check_integer
from sma_core.errors import ConfigError


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
