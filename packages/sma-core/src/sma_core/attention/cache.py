"""The working memory of a stream: the last W + 1 active rows of each sequence, in a ring."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sma_core.dispatch import Rows
from sma_core.state import TensorState


@dataclass
class AttentionCache(TensorState):
    """Keys and values of the last W + 1 active rows; row n lies in slot ``n mod (W + 1)``.

    Parameters
    ----------
    key, value
        Keys (rotated already) and values.
    position
        Time index of each row.
    count
        Active rows seen so far.
    """

    key: Float[Tensor, "B S Z"]
    value: Float[Tensor, "B S H"]
    position: Int[Tensor, "B S"]
    count: Int[Tensor, "B"]

    @property
    def slots(self) -> int:
        """S = W + 1."""
        return self.key.shape[1]

    def join(
        self, rows: Rows, key: Float[Tensor, "R Z"], value: Float[Tensor, "R H"]
    ) -> "JoinedRows":
        """Put before the rows of each sequence its last W rows, in time order.

        Rows older than the stream are there too, as a group of their own that no one else sees:
        every size is then known without reading from the device.
        """
        batch, window = self.key.shape[0], self.slots - 1
        device = self.key.device
        sequences = torch.arange(batch, device=device)
        order = self.count[:, None] - window + torch.arange(window, device=device)  # [B, W]
        slot = sequences[:, None] * self.slots + order.remainder(self.slots)
        ages = torch.where(order >= 0, sequences[:, None], sequences[:, None] + 2 * batch)

        total = rows.sequence.shape[0] + batch * window
        new = torch.arange(rows.sequence.shape[0], device=device)
        new = new + (rows.sequence + 1) * window
        # An old row of sequence b comes after b sequences' old rows and what is new in them.
        end = rows.start + sequences * window
        old = (end[:, None] + torch.arange(window, device=device)).flatten()

        def joined(past: Tensor, present: Tensor) -> Tensor:
            taken = past.flatten(0, 1).index_select(0, slot.flatten()).to(present.dtype)
            out = present.new_zeros(total, *present.shape[1:])
            return out.index_copy(0, old, taken).index_copy(0, new, present)

        group = rows.group.new_zeros(total)
        group = group.index_copy(0, old, ages.flatten()).index_copy(0, new, rows.group)
        return JoinedRows(
            key=joined(self.key, key),
            value=joined(self.value, value),
            position=joined(self.position, rows.position),
            group=group,
            new=new,
        )

    def extend(self, rows: Rows, key: Float[Tensor, "R Z"], value: Float[Tensor, "R H"]) -> None:
        """Take in the rows of a chunk."""
        batch, slots = self.key.shape[:2]
        device = self.key.device
        count = self.count + rows.count
        # Slot s ends up with the last row n < count whose n mod S is s; gathering it, rather
        # than writing every row in turn, leaves nothing to the order of writes.
        last = count[:, None] - 1
        number = last - (last - torch.arange(slots, device=device)).remainder(slots)
        kept = torch.arange(batch * slots, device=device).view(batch, slots)
        fresh = batch * slots + rows.start[:, None] + number - self.count[:, None]
        source = torch.where(number >= self.count[:, None], fresh, kept).flatten()

        def updated(past: Tensor, present: Tensor) -> Tensor:
            both = torch.cat((past.flatten(0, 1), present.detach().to(past.dtype)))
            return both.index_select(0, source).view(past.shape)

        self.key = updated(self.key, key)
        self.value = updated(self.value, value)
        self.position = updated(self.position, rows.position)
        self.count = count

    def push(
        self,
        key: Float[Tensor, "A Z"],
        value: Float[Tensor, "A H"],
        position: Int[Tensor, "A"],
        index: Int[Tensor, "A"] | None,
    ) -> "StepView":
        """Write one row to each of the sequences `index` (None: to all), and look at the ring."""
        batch, slots = self.key.shape[:2]
        count = self.count if index is None else self.count.index_select(0, index)
        newest = count.remainder(slots)
        flat = newest
        if index is not None:
            flat = newest + index * slots
        elif batch > 1:
            flat = newest + torch.arange(batch, device=newest.device) * slots
        self.key.flatten(0, 1).index_copy_(0, flat, key.to(self.key.dtype))
        self.value.flatten(0, 1).index_copy_(0, flat, value.to(self.value.dtype))
        self.position.flatten().index_copy_(0, flat, position)
        slot = torch.arange(slots, device=newest.device)
        view = StepView(
            key=self.key if index is None else self.key.index_select(0, index),
            value=self.value if index is None else self.value.index_select(0, index),
            position=self.position if index is None else self.position.index_select(0, index),
            filled=slot <= count[:, None],
            age=(newest[:, None] - slot).remainder(slots),
        )
        if index is None:
            self.count.add_(1)
        else:
            self.count.index_add_(0, index, torch.ones_like(index))
        return view


@dataclass(frozen=True)
class JoinedRows:
    """Old and new rows of a chunk; `new` says where the new ones lie."""

    key: Float[Tensor, "J Z"]
    value: Float[Tensor, "J H"]
    position: Int[Tensor, "J"]
    group: Int[Tensor, "J"]
    new: Int[Tensor, "R"]


@dataclass(frozen=True)
class StepView:
    """What one row of each of A sequences sees: its ring, in no order of time.

    `age` is the distance in active rows from a slot to the newest one.
    """

    key: Float[Tensor, "A S Z"]
    value: Float[Tensor, "A S H"]
    position: Int[Tensor, "A S"]
    filled: Bool[Tensor, "A S"]
    age: Int[Tensor, "A S"]
