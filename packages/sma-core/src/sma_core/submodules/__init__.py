"""The pool: functions of the active rows alone.

A new sub-module is one configuration class, one module and one call of `register_submodule`.
"""

from sma_core.config import GatedAttentionConfig, SubModuleConfig, SwiGLUConfig
from sma_core.errors import ConfigError
from sma_core.submodule_configs import (
    ActiveEMAConfig,
    FullAttentionConfig,
    LocalConvolutionConfig,
)
from sma_core.submodules.active_ema import ActiveEMA
from sma_core.submodules.full_attention import FullAttention
from sma_core.submodules.gated_attention import GatedAttention
from sma_core.submodules.local_convolution import LocalConvolution
from sma_core.submodules.submodule import RowwiseSubModule, SubModule
from sma_core.submodules.swiglu import SwiGLU

__all__ = [
    "SUBMODULES",
    "ActiveEMA",
    "FullAttention",
    "GatedAttention",
    "LocalConvolution",
    "RowwiseSubModule",
    "SubModule",
    "SwiGLU",
    "build_submodule",
    "register_submodule",
]

SUBMODULES: dict[type[SubModuleConfig], type[SubModule]] = {}


def register_submodule(config: type[SubModuleConfig], submodule: type[SubModule]) -> None:
    """Make `build_submodule` answer configurations of the class `config` with `submodule`."""
    SUBMODULES[config] = submodule


def build_submodule(config: SubModuleConfig, *, width: int, causal: bool) -> SubModule:
    """Make a sub-module.

    Parameters
    ----------
    config
        Which sub-module.
    width
        D.
    causal
        Whether a row may see only itself and rows before it.

    Raises
    ------
    ConfigError
        No sub-module is registered for this class of configuration.
    """
    try:
        submodule = SUBMODULES[type(config)]
    except KeyError:
        known = ", ".join(sorted(c.__name__ for c in SUBMODULES))
        raise ConfigError(
            f"pool: nothing is registered for {type(config).__name__}; known are {known}"
        ) from None
    return submodule(config, width=width, causal=causal)


register_submodule(GatedAttentionConfig, GatedAttention)
register_submodule(SwiGLUConfig, SwiGLU)
register_submodule(LocalConvolutionConfig, LocalConvolution)
register_submodule(FullAttentionConfig, FullAttention)
register_submodule(ActiveEMAConfig, ActiveEMA)
