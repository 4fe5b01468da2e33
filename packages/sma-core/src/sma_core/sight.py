"""How far back in original time a sub-module sees: the span of its active rows."""

from collections.abc import Sequence
from functools import singledispatch

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sma_core.submodules import FullAttention, GatedAttention, LocalConvolution, RowwiseSubModule
from sma_core.submodules.submodule import SubModule


@singledispatch
def submodule_reach(submodule: SubModule) -> int | None:
    """How many active rows away the farthest row lies that a row can see; None: any of them.

    A sub-module of your own that sees less than all registers how much:
    ``submodule_reach.register(MyModule, lambda module: 3)``.

    Parameters
    ----------
    submodule : SubModule
        A member of a pool.
    """
    return None


@submodule_reach.register
def _(submodule: GatedAttention) -> int | None:
    return submodule.config.window


@submodule_reach.register
def _(submodule: FullAttention) -> int | None:
    return submodule.config.max_rows - 1


@submodule_reach.register
def _(submodule: LocalConvolution) -> int | None:
    return submodule.config.kernel_size - 1


@submodule_reach.register
def _(submodule: RowwiseSubModule) -> int | None:
    return 0


def rows_in_sight(
    active: Bool[Tensor, "L B T M"],
    position: Int[Tensor, "B T"],
    reach: Sequence[int | None],
    *,
    causal: bool,
) -> Int[Tensor, "L B T M 2"]:
    """Time index of the first and of the last row that each active row can see; -1 elsewhere.

    Parameters
    ----------
    active : Tensor
        Where each sub-module ran.
    position : Tensor
        Time index of each step.
    reach : sequence of int or None
        Of each sub-module, in active rows; None is without bound.
    causal : bool
        Whether a row sees only itself and rows before it.
    """
    steps = active.shape[2]
    far = torch.tensor([steps if rows is None else rows for rows in reach], device=active.device)
    place = active.cumsum(2) - 1
    # The n-th active row of a sequence stands at order[n]: a stable sort keeps time.
    order = (~active).to(torch.uint8).argsort(dim=2, stable=True)
    first = (place - far).clamp_min(0)
    last = place if causal else torch.minimum(place + far, active.sum(2, keepdim=True) - 1)
    time = position[None, :, :, None].expand_as(order)
    seen = [time.gather(2, order.gather(2, end.clamp_min(0))) for end in (first, last)]
    return torch.stack(seen, dim=-1).masked_fill(~active.unsqueeze(-1), -1)
