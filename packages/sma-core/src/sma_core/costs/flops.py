"""Operations of a time step at a measured activation.

A FLOP is a multiplication or an addition, so a product of m x k and k x n costs 2 m k n.
Counted are matrix products and the EMA's recurrence; norms, activations and additions of vectors
are left out, as they are in published counts. Axes as everywhere: D width, N EMA states, Z and H
widths of queries and values, W window.
"""

from collections.abc import Sequence
from functools import singledispatch

from sma_core.config import (
    ArchitectureConfig,
    GatedAttentionConfig,
    GRUConfig,
    ModelConfig,
    SubModuleConfig,
    SwiGLUConfig,
    TransformerConfig,
)
from sma_core.errors import ConfigError
from sma_core.routing import policy_class
from sma_core.submodule_configs import (
    ActiveEMAConfig,
    FullAttentionConfig,
    LocalConvolutionConfig,
)

Rates = Sequence[Sequence[float]]


def step_flops(config: ArchitectureConfig, activation: Rates = ()) -> float:
    """FLOPs of one time step, averaged over steps, once the attention windows are full.

    A streaming step costs exactly this. A forward over whole sequences does the same useful work,
    and some more at the edges of its blocks.

    Parameters
    ----------
    config : ArchitectureConfig
        The model.
    activation : rates [L][M]
        Share of steps at which each sub-module of each layer runs, as of `RoutingTrace.rates`;
        unused by a model that does not route.

    Raises
    ------
    ConfigError
        When the rates do not fit the model, or a sub-module has no count.
    """
    return product_flops(config, activation) + recurrence_flops(config)


def dense_step_flops(config: ArchitectureConfig) -> float:
    """FLOPs of one time step with every sub-module on."""
    return step_flops(config, _all_on(config))


def product_flops(config: ArchitectureConfig, activation: Rates = ()) -> float:
    """Part of `step_flops` that goes into matrix products; see there."""
    embed = 2 * (2 * config.inputs.numeric) * config.width
    head = 2 * config.width * config.head.outputs
    if isinstance(config, ModelConfig):
        check_rates(config, activation)
        return float(embed + head + sum(_layer_flops(config, rates) for rates in activation))
    if isinstance(config, TransformerConfig):
        width = config.width
        projections = 2 * width * 4 * width + 2 * 2 * width * config.hidden_width
        attention = 2 * 2 * (config.window + 1) * width
        return float(embed + head + config.layers * (projections + attention))
    if isinstance(config, GRUConfig):
        # Three gates, each of the input and of the state.
        return float(embed + head + config.layers * 2 * 6 * config.width**2)
    raise ConfigError(f"architecture: no count of FLOPs for {config.architecture!r}")


def _layer_flops(config: ModelConfig, rates: Sequence[float]) -> float:
    pool = len(config.pool)
    always = 2 * config.width * (2 * pool + config.width)
    always += policy_class(config.policy).flops(config.policy, width=config.width, pool=pool)
    return always + sum(
        rate * submodule_flops(member, config.width, config.causal)
        for rate, member in zip(rates, config.pool, strict=True)
    )


@singledispatch
def submodule_flops(config: SubModuleConfig, width: int, causal: bool) -> int:
    """FLOPs of a sub-module's matrix products on one active row.

    A sub-module of another kind adds its own: ``@submodule_flops.register``.

    Parameters
    ----------
    config : SubModuleConfig
        The sub-module.
    width : int
        D.
    causal : bool
        Whether rows after the present one are hidden.
    """
    raise ConfigError(f"pool: no count of FLOPs for sub-module {config.kind!r}")


@submodule_flops.register
def _(config: GatedAttentionConfig, width: int, causal: bool) -> int:
    z, h = config.query_width, config.value_width
    seen = config.window + 1 if causal else 2 * config.window + 1
    return 2 * (width * (z + 2 * h) + seen * (z + h) + h * width)


@submodule_flops.register
def _(config: SwiGLUConfig, width: int, causal: bool) -> int:
    return 2 * 3 * width * config.hidden_width


@submodule_flops.register
def _(config: LocalConvolutionConfig, width: int, causal: bool) -> int:
    taps = config.kernel_size if causal else 2 * config.kernel_size - 1
    return 2 * width * (taps + width)


@submodule_flops.register
def _(config: FullAttentionConfig, width: int, causal: bool) -> int:
    inner = config.heads * config.head_width
    seen = config.max_rows if causal else 2 * config.max_rows - 1
    return 2 * (4 * width * inner + 2 * seen * inner)


@submodule_flops.register
def _(config: ActiveEMAConfig, width: int, causal: bool) -> int:
    directions = 1 if causal else 2
    return width * (directions * 5 * config.states + 2) + 2 * width * width


def recurrence_flops(config: ArchitectureConfig) -> float:
    """Decay, write and read of every EMA state, and the direct term: 5 N + 2 a channel."""
    if not isinstance(config, ModelConfig):
        return 0.0
    directions = 1 if config.causal else 2
    return float(config.layers * config.width * (directions * 5 * config.states + 2))


def _all_on(config: ArchitectureConfig) -> Rates:
    return [[1.0] * len(config.pool)] * config.layers if isinstance(config, ModelConfig) else ()


def check_rates(config: ModelConfig, activation: Rates) -> None:
    """Raise `ConfigError` unless there is a rate in 0..1 for each sub-module of each layer."""
    if [len(rates) for rates in activation] != [len(config.pool)] * config.layers:
        raise ConfigError(
            f"activation: needs {config.layers} layers of {len(config.pool)} rates, got "
            f"{[list(rates) for rates in activation]}"
        )
    if not all(0.0 <= rate <= 1.0 for rates in activation for rate in rates):
        raise ConfigError(f"activation: rates lie in 0..1, got {[list(r) for r in activation]}")
