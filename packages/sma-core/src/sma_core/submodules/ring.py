"""What sub-modules that keep their last rows in a ring have in common."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sma_core.attention import AttentionCache
from sma_core.submodules.submodule import SubModule


class RingSubModule(SubModule):
    """A sub-module whose state is an `AttentionCache`."""

    def step_where(
        self,
        active: Bool[Tensor, "B"],
        x: Float[Tensor, "B D"],
        position: Int[Tensor, "B"],
        state: AttentionCache | None,
    ) -> Float[Tensor, "B D"]:
        """See `SubModule.step_where`; the ring is not copied, its newest row is taken back."""
        assert state is not None  # noqa: S101  (made by init_state)
        out = self.step(x, position, state, None)
        state.retract(~active)
        return out
