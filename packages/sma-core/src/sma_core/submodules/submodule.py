"""What every sub-module of the pool is."""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sma_core.dispatch import Rows
from sma_core.state import TensorState


class SubModule(nn.Module):
    """Base of sub-modules: a function of the active rows, in time order.

    A sub-module with a history defines `forward`, `init_state` and `step`. One that treats each row
    by itself derives from `RowwiseSubModule` instead.

    Parameters
    ----------
    config
        The sub-module's own configuration.
    width
        D.
    causal
        Whether a row may see only itself and rows before it.
    """

    def __init__(self, config: Any, *, width: int, causal: bool) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.causal = causal

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "R D"], rows: Rows, state: Any | None = None
    ) -> Float[Tensor, "R D"]:
        """Run on all active rows of a batch, R may be 0.

        Parameters
        ----------
        x
            The rows.
        rows
            Where they come from.
        state
            To continue from and to update, or None to start afresh and keep nothing.
        """

    def init_state(
        self, batch: int, device: torch.device, dtype: torch.dtype
    ) -> TensorState | None:
        """Make the state before the first step; None for a sub-module without history."""
        return None

    def step(
        self,
        x: Float[Tensor, "A D"],
        position: Int[Tensor, "A"],
        state: Any | None,
        index: Int[Tensor, "A"] | None,
    ) -> Float[Tensor, "A D"]:
        """Run on one row of each of A sequences and update their states in place.

        Parameters
        ----------
        x
            The rows.
        position
            Their time indices.
        state
            Of the whole batch.
        index
            Which sequences of the batch the rows belong to; None: all, in order.
        """
        raise NotImplementedError

    def step_where(
        self,
        active: Bool[Tensor, "B"],
        x: Float[Tensor, "B D"],
        position: Int[Tensor, "B"],
        state: Any | None,
    ) -> Float[Tensor, "B D"]:
        """Step all sequences, and keep the new state of the active ones only.

        For graphs that are captured once and replayed: the host reads nothing and every size is
        the same at every step. What is returned for a sequence that is not active is not used.

        Parameters
        ----------
        active
            Which sequences run.
        x, position, state
            As of `step`, of all sequences.
        """
        before = None if state is None else [tensor.clone() for tensor in state.tensors()]
        out = self.step(x, position, state, None)
        if state is not None and before is not None:
            for new, old in zip(state.tensors(), before, strict=True):
                runs = active.view(-1, *(1,) * (new.dim() - 1))
                new.copy_(new.where(runs, old))
        return out


class RowwiseSubModule(SubModule):
    """A sub-module that treats each row by itself: it defines `transform` and nothing else."""

    @abstractmethod
    def transform(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """Run on each row."""

    def forward(
        self, x: Float[Tensor, "R D"], rows: Rows, state: Any | None = None
    ) -> Float[Tensor, "R D"]:
        """See `SubModule.forward`."""
        return self.transform(x)

    def step(
        self,
        x: Float[Tensor, "A D"],
        position: Int[Tensor, "A"],
        state: Any | None,
        index: Int[Tensor, "A"] | None,
    ) -> Float[Tensor, "A D"]:
        """See `SubModule.step`."""
        return self.transform(x)


def init_linear(linear: nn.Linear) -> None:
    """Draw weights from a normal of std 0.02, cut at two; the bias starts at zero."""
    nn.init.trunc_normal_(linear.weight, std=0.02, a=-0.04, b=0.04)
    nn.init.zeros_(linear.bias)
