"""From sequences of any length to batches of windows, in an order fixed by a seed.

`WindowSampler.batch` answers any index directly, without the batches before it: a training run that
was interrupted goes on with the batch that was next.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from sma_core.config import HeadKind
from sma_core.errors import DatasetError
from sma_core.inputs import Inputs

from .reader import Split

# Windows of like length share a batch, to pad little; they are sorted within this many batches at
# a time, so that a batch still is a random choice.
_POOL_BATCHES = 32


@dataclass(frozen=True)
class Batch:
    """Windows to learn from.

    Parameters
    ----------
    inputs : Inputs
        Right-padded windows; ``lengths`` is None when all are as long.
    target : Tensor
        forecast: the next row's channels, float32 [B, T, C], NaN = missing or padding. Step
        classification: classes, int64 [B, T], -1 = ignore. Sequence classification: classes,
        int64 [B].
    mask : Tensor
        Steps that have something to learn: for sequence classification, those that are valid.
    """

    inputs: Inputs
    target: Float32[Tensor, "B T C"] | Int64[Tensor, "B T"] | Int64[Tensor, " B"]
    mask: Bool[Tensor, "B T"]

    def to(self, device: torch.device | str) -> "Batch":
        """Copy to another device; what is pinned is copied without a wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def pinned(self) -> "Batch":
        """Copy to memory that a GPU reads by itself."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(self.inputs.map(function), function(self.target), function(self.mask))


class WindowSampler:
    """Windows of a split, shuffled anew each epoch.

    A sequence of n usable rows gives ceil(n / window) windows an epoch. A sequence no longer than
    `window` is one window; otherwise the windows are full and their starts are drawn evenly along
    the sequence, so that cuts fall elsewhere in every epoch and nothing is padded. Sequence
    classification never cuts: a sequence's class belongs to the whole.

    Parameters
    ----------
    split : Split
        Where the rows are.
    kind : HeadKind
        Task, which decides the targets.
    window : int
        Longest window, in steps.
    batch_size : int
        Windows of a batch; an epoch's last one may have fewer.
    seed : int
        Fixes every window and its place.

    Attributes
    ----------
    longest : int
        Steps of the longest window.

    Raises
    ------
    DatasetError
        When the split has nothing to learn for this task.
    """

    def __init__(
        self, split: Split, kind: HeadKind, *, window: int, batch_size: int, seed: int = 0
    ) -> None:
        self.split = split
        self.kind: HeadKind = kind
        self.window = window
        self.batch_size = batch_size
        self.seed = seed
        usable = split.offsets.diff()
        if kind == "forecast":
            if not split.card.numeric:
                raise DatasetError(f"{split.path}: a forecast needs numeric channels")
            usable = usable - 1  # the last row has no next one
        elif kind == "step_classification" and not split.has_target:
            raise DatasetError(f"{split.path}: step classification needs the tensor 'target'")
        elif kind == "sequence_classification":
            if split.sequence_target is None:
                raise DatasetError(
                    f"{split.path}: sequence classification needs the tensor 'sequence_target'"
                )
            usable = usable.where(split.sequence_target >= 0, 0)
        self._usable = usable
        longest = usable.clamp_max(window) if kind != "sequence_classification" else usable
        self._longest = longest
        self._counts = torch.where(usable > 0, -(-usable // longest.clamp_min(1)), 0)
        self.windows = int(self._counts.sum())
        if self.windows == 0:
            raise DatasetError(f"{split.path}: no row to learn {kind} from")
        self.batches_per_epoch = -(-self.windows // batch_size)
        self.longest = int(longest.max())
        self._epoch = -1
        self._plan: list[Int64[Tensor, "b 3"]] = []

    def batch(self, index: int, *, part: int = 0, parts: int = 1, fixed: bool = False) -> Batch:
        """Return the batch of a training step, counted from 0 through all epochs, or a part of it.

        The parts of a batch hold each of its windows once, and each part is padded as the whole
        batch is. Only the part's own rows are read.

        Parameters
        ----------
        index : int
            Number of the batch.
        part, parts : int
            Every window whose place in the batch is `part` modulo `parts`. A part that gets none,
            as there are too few, is one window of no step, with nothing to learn.
        fixed : bool
            Give all batches one shape: padded to the longest window of the split, and filled up
            with windows of no step.
        """
        epoch, place = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            self._plan = self._plan_epoch(epoch)
            self._epoch = epoch
        windows = self._plan[place]
        own = windows[part::parts].tolist()
        if fixed:
            return self._assemble(own, -(-self.batch_size // parts), self.longest, fixed=True)
        return self._assemble(own, max(1, len(own)), int(windows[:, 2].max()))

    def _plan_epoch(self, epoch: int) -> list[Int64[Tensor, "b 3"]]:
        """Batches of (sequence, first row, steps)."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        sequence = torch.repeat_interleave(self._counts)
        count, steps = self._counts[sequence], self._longest[sequence]
        nth = torch.arange(len(sequence)) - (self._counts.cumsum(0) - self._counts)[sequence]
        # The starts that fit are cut into `count` even strips; each window starts in its own.
        starts = self._usable[sequence] - steps + 1
        low, high = nth * starts // count, (nth + 1) * starts // count
        draw = torch.rand(len(sequence), generator=generator, dtype=torch.float64)
        start = low + (draw * (high - low)).long()

        order = torch.randperm(len(sequence), generator=generator)
        pool = torch.arange(len(order)) // (self.batch_size * _POOL_BATCHES)
        key = pool * (int(steps.max()) + 1) + steps[order]
        order = order[key.argsort(stable=True)]
        windows = torch.stack([sequence, self.split.offsets[sequence] + start, steps], dim=1)[order]
        batches = windows.split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _assemble(
        self, windows: list[list[int]], count: int, longest: int, *, fixed: bool = False
    ) -> Batch:
        split, kind, card = self.split, self.kind, self.split.card
        shape = (count, longest)
        numeric = torch.zeros(*shape, len(card.numeric)) if card.numeric else None
        categorical = None
        if card.categorical:
            categorical = torch.zeros(*shape, len(card.categorical), dtype=torch.int64)
        following = torch.full((*shape, len(card.numeric)), torch.nan)
        classes = torch.full(shape, -1)
        for i, (_, start, steps) in enumerate(windows):
            rows = split.read(start, start + steps + (kind == "forecast"))
            if numeric is not None and rows.numeric is not None:
                numeric[i, :steps] = rows.numeric[:steps]
                if kind == "forecast":
                    following[i, :steps] = rows.numeric[1:]
            if categorical is not None and rows.categorical is not None:
                categorical[i, :steps] = rows.categorical[:steps]
            if kind == "step_classification" and rows.target is not None:
                classes[i, :steps] = rows.target
        lengths = torch.zeros(count, dtype=torch.int64)
        lengths[: len(windows)] = torch.tensor([steps for _, _, steps in windows])
        padded = fixed or bool((lengths < longest).any())
        inputs = Inputs(numeric, categorical, lengths if padded else None)
        if kind == "forecast":
            return Batch(inputs, following, following.isfinite().any(-1))
        if kind == "step_classification":
            return Batch(inputs, classes, classes >= 0)
        assert split.sequence_target is not None  # noqa: S101  (held by __init__)
        of_sequence = torch.full((count,), -1)
        if windows:
            found = split.sequence_target[[sequence for sequence, _, _ in windows]]
            of_sequence[: len(windows)] = found.long()
        return Batch(inputs, of_sequence, torch.arange(longest) < lengths[:, None])


def batches(
    split: Split,
    kind: HeadKind,
    *,
    window: int,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[Batch]:
    """Iterate over the batches of one epoch; see `WindowSampler`."""
    sampler = WindowSampler(split, kind, window=window, batch_size=batch_size, seed=seed)
    first = epoch * sampler.batches_per_epoch
    for index in range(first, first + sampler.batches_per_epoch):
        yield sampler.batch(index)
