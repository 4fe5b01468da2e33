"""Routing policies: logits and positions in, a `RoutingDecision` out.

A new policy is one configuration class, one module and one call of `register_policy`.
"""

from torch import nn

from sma_core.config import (
    AlwaysConfig,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    RandomConfig,
    TemperedSoftmaxConfig,
)
from sma_core.errors import ConfigError
from sma_core.policy_configs import BudgetConfig, GumbelConfig, SigmoidConfig, TopKConfig
from sma_core.routing.budget import Budget
from sma_core.routing.decision import RoutingDecision
from sma_core.routing.fixed import Always, Never, Periodic, Random
from sma_core.routing.policy import Policy, RouterInputs
from sma_core.routing.softmax import TemperedSoftmax
from sma_core.routing.straight_through import Gumbel, Sigmoid
from sma_core.routing.top_k import TopK

__all__ = [
    "POLICIES",
    "Policy",
    "RouterInputs",
    "RoutingDecision",
    "build_policy",
    "policy_class",
    "register_policy",
    "set_progress",
]

POLICIES: dict[type[PolicyConfig], type[Policy]] = {}


def register_policy(config: type[PolicyConfig], policy: type[Policy]) -> None:
    """Make `build_policy` answer configurations of the class `config` with `policy`."""
    POLICIES[config] = policy


def policy_class(config: PolicyConfig) -> type[Policy]:
    """Class that is registered for a configuration.

    Raises
    ------
    ConfigError
        No policy is registered for this class of configuration.
    """
    try:
        return POLICIES[type(config)]
    except KeyError:
        known = ", ".join(sorted(c.__name__ for c in POLICIES))
        raise ConfigError(
            f"policy: nothing is registered for {type(config).__name__}; known are {known}"
        ) from None


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
    return policy_class(config)(config, width=width, pool=pool, layer=layer)


def set_progress(model: nn.Module, share: float) -> None:
    """Tell every policy of a model which share of the training steps is done.

    `fit` does so before each step; a training loop of one's own does it for its schedules.
    """
    for module in model.modules():
        if isinstance(module, Policy):
            module.set_progress(share)


register_policy(TemperedSoftmaxConfig, TemperedSoftmax)
register_policy(GumbelConfig, Gumbel)
register_policy(SigmoidConfig, Sigmoid)
register_policy(TopKConfig, TopK)
register_policy(BudgetConfig, Budget)
register_policy(AlwaysConfig, Always)
register_policy(NeverConfig, Never)
register_policy(PeriodicConfig, Periodic)
register_policy(RandomConfig, Random)
