"""Training steps compiled: each layer, or the whole model, forward and backward as one graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sma_core.errors import ConfigError
from sma_core.model import SequenceModel
from sma_core.training_config import Compile

# Graphs of one function: one of each layer, and some to spare. With more of them torch.compile
# gives up.
_GRAPHS = 256


def compile_training(model: SequenceModel, how: Compile) -> None:
    """Let a model run compiled where it trains; in evaluation and in streams it stays as it is.

    No module and no weight changes its name. Compiled is what is called first, so this costs
    nothing yet.

    Parameters
    ----------
    model
        On its device.
    how
        See `TrainingConfig.compile`.

    Raises
    ------
    ConfigError
        The model has no list of layers to compile by.
    """
    if how == "none":
        return
    parts = [model] if how == "model" else layers_of(model, "compile")
    # One shape alone: `WindowSampler.batch` makes batches of it.
    mode = "reduce-overhead" if replays(model, how) else "default"
    for part in parts:
        compiled = torch.compile(part.forward, fullgraph=True, dynamic=False, mode=mode)
        part.forward = _in_training(part, compiled, part.forward)


def replays(model: SequenceModel, how: Compile) -> bool:
    """Whether steps are recorded as CUDA graphs, which write where the step before did."""
    return how == "model" and model.head.weight.is_cuda


@contextmanager
def compiling(how: Compile) -> Iterator[None]:
    """Around all that a compiled model does.

    Raises
    ------
    ConfigError
        The compiler failed; the message says at what.
    """
    if how == "none":
        yield
        return
    # Imported here, as it takes seconds.
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    # Gradients of a graph come all at once: there is nothing to cut it at for their exchange.
    with config.patch(optimize_ddp=False, recompile_limit=_GRAPHS):
        try:
            yield
        except TorchDynamoException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ConfigError(
                f"compile: {how!r} does not work here: {type(error).__name__}: "
                f"{' '.join(lines[:2]) or 'no message'}; use 'none'"
            ) from error


def layers_of(model: SequenceModel, wanted_by: str) -> nn.ModuleList:
    """Give the list of layers of a model.

    Raises
    ------
    ConfigError
        It has none; the message names the setting that needs them.
    """
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"{wanted_by}: {type(model).__name__} has no ModuleList named `layers`")
    return layers


def _in_training(
    part: nn.Module, compiled: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if part.training else plain)(*args, **kwargs)

    return forward
