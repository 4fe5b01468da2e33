"""Routing policies: logits and positions in, a `RoutingDecision` out.

A new policy is one configuration class, one module and one call of `register_policy`.
"""

from sma_core.config import (
    AlwaysConfig,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    RandomConfig,
    TemperedSoftmaxConfig,
)
from sma_core.errors import ConfigError
from sma_core.routing.decision import RoutingDecision
from sma_core.routing.fixed import Always, Never, Periodic, Random
from sma_core.routing.policy import Policy
from sma_core.routing.softmax import TemperedSoftmax

__all__ = ["POLICIES", "Policy", "RoutingDecision", "build_policy", "register_policy"]

POLICIES: dict[type[PolicyConfig], type[Policy]] = {}


def register_policy(config: type[PolicyConfig], policy: type[Policy]) -> None:
    """Make `build_policy` answer configurations of the class `config` with `policy`."""
    POLICIES[config] = policy


def build_policy(config: PolicyConfig, *, width: int, pool: int, layer: int) -> Policy:
    """Make the policy of one layer.

    Parameters
    ----------
    config
        Which policy.
    width
        D, width of the stream that the logits come from.
    pool
        M, number of sub-modules.
    layer
        Index of the layer.

    Raises
    ------
    ConfigError
        No policy is registered for this class of configuration.
    """
    try:
        policy = POLICIES[type(config)]
    except KeyError:
        known = ", ".join(sorted(c.__name__ for c in POLICIES))
        raise ConfigError(
            f"policy: nothing is registered for {type(config).__name__}; known are {known}"
        ) from None
    return policy(config, width=width, pool=pool, layer=layer)


register_policy(TemperedSoftmaxConfig, TemperedSoftmax)
register_policy(AlwaysConfig, Always)
register_policy(NeverConfig, Never)
register_policy(PeriodicConfig, Periodic)
register_policy(RandomConfig, Random)
