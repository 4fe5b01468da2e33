"""Memory of a model: weights, the stream of one entity, the most that one pass holds at once."""

from collections.abc import Sequence

import torch
from torch import nn

from sma_core.config import ArchitectureConfig
from sma_core.costs.parts import Part
from sma_core.model import build_model
from sma_core.operations import Count, Extent


def parameter_count(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def state_bytes(config: ArchitectureConfig, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that the stream of one entity keeps from step to step.

    Raises
    ------
    StreamingError
        When the model is bidirectional.
    """
    # On the meta device nothing is allocated, and no formula can fall behind the code.
    with torch.device("meta"):
        return build_model(config).init_state(1, device="meta", dtype=dtype).nbytes


def peak_bytes(config: ArchitectureConfig, parts: Sequence[Part], extent: Extent) -> Count:
    """Most bytes of activations alive at once in a pass without gradient.

    A layer holds its input; while its pool runs, also the activated stream, its projection and the
    sum of outputs; a sub-module what it has written so far. Decisions stay to the end of the pass.

    Parameters
    ----------
    config
        The model.
    parts
        Of the model.
    extent
        Of the pass.
    """
    stream = extent.rows * config.width
    pooling = stream * (extent.wide + 2 * extent.narrow)
    peak = decisions = 0.0
    for part in parts:
        held = 0.0 if part.layer is None else stream * extent.wide
        written = 0.0
        for operation in part.operations:
            beside = pooling + written if part.pooled else operation.read
            alive = held + beside + operation.written + operation.working
            peak = max(peak, decisions + alive)
            written += operation.written
        if part.name == "policy":
            decisions += written
    return peak
