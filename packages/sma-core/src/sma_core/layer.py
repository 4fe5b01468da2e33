"""The layer: norm -> EMA -> router -> dispatch -> pool -> combine.

Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling", arXiv 2306.11197.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sma_core.config import ModelConfig
from sma_core.dispatch import (
    DISPATCHES,
    CapacityDispatch,
    PackedDispatch,
    capacity_slots,
    keep_surest,
    largest_sizes,
)
from sma_core.ema import MultiHeadEMA
from sma_core.norms import build_norm
from sma_core.routing import RouterInputs, RoutingDecision, build_policy
from sma_core.state import TensorState
from sma_core.submodules import SubModule, build_submodule
from sma_core.submodules.submodule import init_linear
from sma_core.sums import silu_of_sum
from sma_core.tracing import is_exporting, is_recording


@dataclass
class LayerState(TensorState):
    """State of one layer: the EMA's, and that of each sub-module and policy that has one."""

    ema: Float[Tensor, "B D N"]
    pool: list[Any]
    policy: Any = None


class SMALayer(nn.Module):
    """One layer of Sparse Modular Activation.

    Every step takes the EMA and a linear path. The router decides, step by step, which
    sub-modules of the pool run; each sees only the steps at which it is active.

    Parameters
    ----------
    config
        Of the model.
    index
        Which layer this is, from 0.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        width, pool = config.width, len(config.pool)
        self.config = config
        self.norm = build_norm(config.norm, width)
        self.ema = MultiHeadEMA(
            width, config.states, bidirectional=config.bidirectional, method=config.ema
        )
        self.project = nn.Linear(width, 2 * pool + width)  # router logits, and the dense path
        self.policy = build_policy(config.policy, width=width, pool=pool, layer=index)
        self.pool = nn.ModuleList(
            build_submodule(member, width=width, causal=config.causal) for member in config.pool
        )
        self.shares = [Fraction(c).limit_denominator(10**6) for c in config.capacity_shares]
        init_linear(self.project)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        position: Int[Tensor, "B T"],
        valid: Bool[Tensor, "B T"] | None = None,
        state: LayerState | None = None,
    ) -> tuple[Float[Tensor, "B T D"], RoutingDecision]:
        """Run over T steps.

        Parameters
        ----------
        x
            Residual stream.
        position
            Time index of each step.
        valid
            Which steps are no padding; None when all are.
        state
            To continue from and to update; None starts afresh and keeps nothing.
        """
        y = self.norm(x, valid) if self.config.prenorm else x
        lengths = None
        if valid is not None:
            y, lengths = y.where(valid.unsqueeze(-1), 0.0), valid.sum(1)
        y, final = self.ema(y, None if state is None else state.ema, lengths)
        # A compiled EMA leaves its output channel by channel, as it is kept for its gradient.
        y = self._dropout(functional.silu(y).contiguous())
        logits, total = self._split(y)
        router = RouterInputs(
            logits=logits,
            features=y,
            position=position,
            valid=valid,
            training=self.training,
            streaming=state is not None,
        )
        decision = self.policy.route(router, None if state is None else state.policy)
        if valid is not None:
            decision = decision.within(valid)
        layout = DISPATCHES[self.config.dispatch]
        if layout is CapacityDispatch:
            decision, sizes = self._fit(decision)
        elif is_exporting():
            # No host reads sizes there. Packed and padded rows give the same numbers.
            layout, sizes = PackedDispatch, largest_sizes(decision.active)
        else:
            # The one read by the host. It stands here, in the outermost frame, so that a compiler
            # breaks its graph in two and no more.
            sizes = layout.sizes(decision.active).tolist()
        plan = layout.plan(decision.active, position, sizes)
        for m, (submodule, dispatch) in enumerate(zip(self.submodules, plan, strict=True)):
            memory = None if state is None else state.pool[m]
            rows = submodule(dispatch.compress(y), dispatch.rows, memory)
            if not self.config.causal:
                rows = self._dropout(rows)
            confidence = dispatch.compress(decision.confidence[..., m, None])
            total = total + dispatch.extract(rows * confidence)
        if self.config.causal:
            total = self._dropout(total)
        out = self._out(total, x, valid)
        if state is not None:
            state.ema = final.detach()
        return out, decision

    def step(
        self, x: Float[Tensor, "B D"], position: Int[Tensor, "B"], state: LayerState
    ) -> tuple[Float[Tensor, "B D"], RoutingDecision]:
        """Run one step and update `state` in place; without gradient and dropout.

        Only what is active is computed: a sub-module that no sequence activates does no work. In a
        CUDA graph, which replays the same work at every step, all is computed.
        """
        y = self.norm(x) if self.config.prenorm else x
        y = functional.silu(self.ema.step(y, state.ema))
        logits, total = self._split(y)
        router = RouterInputs(
            logits=logits.unsqueeze(1),
            features=y.unsqueeze(1),
            position=position.unsqueeze(1),
            streaming=True,
        )
        decision = self.policy.route(router, state.policy)
        recorded = is_recording()
        for m, submodule in enumerate(self.submodules):
            active, confidence = decision.active[:, 0, m], decision.confidence[:, 0, m, None]
            if recorded:
                out = submodule.step_where(active, y, position, state.pool[m])
                total = total + (out * confidence).where(active[:, None], 0.0)
                continue
            runs, index = _running(active)
            if not runs:
                continue
            if index is None:
                out = submodule.step(y, position, state.pool[m], None)
                total = torch.addcmul(total, out, confidence)
            else:
                out = submodule.step(y[index], position[index], state.pool[m], index)
                total = total.index_add(0, index, (out * confidence[index]).to(total.dtype))
        return self._out(total, x), decision

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """Make the state before the first step."""
        return LayerState(
            ema=self.ema.init_state(batch, device, dtype),
            pool=[member.init_state(batch, device, dtype) for member in self.submodules],
            policy=self.policy.init_state(batch, device, dtype),
        )

    @property
    def submodules(self) -> list[SubModule]:
        """The pool, typed."""
        return cast("list[SubModule]", list(self.pool))

    def _split(self, y: Float[Tensor, "*B D"]) -> tuple[Tensor, Tensor]:
        """Router logits [*B, M, 2] and the path that every step takes [*B, D]."""
        pool = len(self.config.pool)
        weight, bias = self.project.weight, self.project.bias
        # Matrix units want rows that begin at multiples of 8 elements: zeros in front see to it.
        fill = -2 * pool % 8 if y.is_cuda else 0
        if fill:
            weight = functional.pad(weight, (0, 0, fill, 0))
            bias = functional.pad(bias, (fill, 0))
        _, logits, dense = functional.linear(y, weight, bias).split(
            (fill, 2 * pool, self.config.width), dim=-1
        )
        # A copy: decisions live on, and would keep the memory of the whole product.
        logits = logits.clone(memory_format=torch.contiguous_format)
        return logits.unflatten(-1, (pool, 2)), dense

    def _fit(self, decision: RoutingDecision) -> tuple[RoutingDecision, list[list[int]]]:
        """Decisions without those that find no slot, and the sizes of the layout."""
        batch, steps, _ = decision.active.shape
        slots = [capacity_slots(share, steps) for share in self.shares]
        kept = keep_surest(decision.active, decision.surety, slots)
        decision = replace(decision, active=kept, dropped=decision.active & ~kept)
        return decision, [[batch * size, size] for size in slots]

    def _out(
        self, total: Float[Tensor, "*B D"], x: Float[Tensor, "*B D"], valid: Tensor | None = None
    ) -> Tensor:
        """Residual stream behind the layer, in the dtype of the weights.

        Confidences are float32 at least, so that sums with rows of a narrower model are too.
        """
        out = silu_of_sum(total, x).to(self.norm.weight.dtype)
        return out if self.config.prenorm else self.norm(out, valid)

    def _dropout(self, x: Tensor) -> Tensor:
        if self.training and self.config.dropout:
            return functional.dropout(x, self.config.dropout)
        return x


def _running(active: Bool[Tensor, "B"]) -> tuple[bool, Int[Tensor, "A"] | None]:
    """Whether any sequence runs, and which; None for all of them. One read by the host."""
    if is_exporting():  # without a host no rows is a number of rows like any other
        return True, active.nonzero().squeeze(1)
    if active.shape[0] == 1:
        return bool(active), None
    index = active.nonzero().squeeze(1)
    return index.shape[0] > 0, None if index.shape[0] == active.shape[0] else index
