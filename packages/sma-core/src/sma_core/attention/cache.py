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
        Time index of each row; -1 where a slot is empty.
    count
        Active rows seen so far.
    """

    key: Float[Tensor, "B S Z"]
    value: Float[Tensor, "B S H"]
    position: Int[Tensor, "B S"]
    count: Int[Tensor, "B"]

    @classmethod
    def fresh(
        cls,
        batch: int,
        slots: int,
        query_width: int,
        value_width: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "AttentionCache":
        """Make an empty cache."""
        return cls(
            key=torch.zeros(batch, slots, query_width, device=device, dtype=dtype),
            value=torch.zeros(batch, slots, value_width, device=device, dtype=dtype),
            position=torch.full((batch, slots), -1, device=device),
            count=torch.zeros(batch, device=device, dtype=torch.int64),
        )

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
    ) -> "AttentionCache":
        """Write one row to the ring of each of the sequences `index`, or of all when None.

        Returns the cache of these sequences: itself for all, else a copy.
        """
        batch, slots = self.key.shape[:2]
        count = self.count if index is None else self.count.index_select(0, index)
        slot = count.remainder(slots)
        if index is not None:
            slot = slot + index * slots
        elif batch > 1:
            slot = slot + torch.arange(0, batch * slots, slots, device=slot.device)
        self.key.view(batch * slots, -1).index_copy_(0, slot, key.to(self.key.dtype))
        self.value.view(batch * slots, -1).index_copy_(0, slot, value.to(self.value.dtype))
        self.position.view(-1).index_copy_(0, slot, position)
        if index is None:
            self.count.add_(1)
            return self
        self.count.index_copy_(0, index, count + 1)
        return self.select(index)

    def retract(self, where: Bool[Tensor, "B"]) -> None:
        """Take back the row that `push` has just written for all, of the sequences `where`.

        The oldest row, in whose slot it was, is not brought back: no later row could see it.
        """
        self.count.sub_(where.to(self.count.dtype))
        newest = torch.arange(self.slots, device=where.device) == self.count[:, None] % self.slots
        self.position.masked_fill_(newest & where[:, None], -1)

    @property
    def empty(self) -> Bool[Tensor, "B S"]:
        """Slots that hold no row yet."""
        return self.position < 0

    @property
    def age(self) -> Int[Tensor, "B S"]:
        """Distance in active rows from each slot's row to the newest one."""
        newest = self.count.unsqueeze(1) - 1
        return (newest - torch.arange(self.slots, device=newest.device)).remainder(self.slots)


@dataclass(frozen=True)
class JoinedRows:
    """Old and new rows of a chunk; `new` says where the new ones lie."""

    key: Float[Tensor, "J Z"]
    value: Float[Tensor, "J H"]
    position: Int[Tensor, "J"]
    group: Int[Tensor, "J"]
    new: Int[Tensor, "R"]
