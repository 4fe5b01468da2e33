"""What goes into a model: a right-padded batch of sequences, checked where it enters."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sma_core.config import InputConfig
from sma_core.errors import ShapeError
from sma_core.tracing import is_exporting


@dataclass(frozen=True)
class Inputs:
    """A batch of B sequences of up to T steps.

    Parameters
    ----------
    numeric
        Real-valued channels; NaN or infinite = missing.
    categorical
        Indices into the vocabulary of each categorical channel.
    lengths
        Valid steps of each sequence, which come first; None when all T are valid.

    Raises
    ------
    ShapeError
        An argument has the wrong rank, dtype or size; the message names it.
    """

    __no_type_check__ = True  # checked below, with errors of our own

    numeric: Float[Tensor, "B T C"] | None = None
    categorical: Int[Tensor, "B T K"] | None = None
    lengths: Int[Tensor, "B"] | None = None

    def __post_init__(self) -> None:
        given = [(n, t) for n in ("numeric", "categorical") if (t := getattr(self, n)) is not None]
        if not given:
            raise ShapeError("numeric, categorical: at least one must be given")
        for name, tensor in given:
            _check_tensor(name, tensor, rank=3, floating=name == "numeric")
        first, tensor = given[0]
        for name, other in given[1:]:
            if other.shape[:2] != tensor.shape[:2] or other.device != tensor.device:
                raise ShapeError(
                    f"{name}: batch, time and device {_where(other)} differ from those of "
                    f"{first}, {_where(tensor)}"
                )
        if tensor.shape[1] < 1:
            raise ShapeError(f"{first}: needs at least one time step, has shape {_where(tensor)}")
        if self.lengths is not None:
            _check_tensor("lengths", self.lengths, rank=1, floating=False)
            if self.lengths.shape[0] != self.batch or self.lengths.device != tensor.device:
                raise ShapeError(
                    f"lengths: must be [{self.batch}] on {tensor.device}, not "
                    f"{_where(self.lengths)}"
                )
            # Reading values of an accelerator's tensor would stall it, and an exported graph has
            # none to read; there they are trusted.
            readable = self.lengths.device.type == "cpu" and not is_exporting()
            if readable and self.lengths.numel():
                low, high = torch.aminmax(self.lengths)
                if low < 0 or high > self.steps:
                    raise ShapeError(f"lengths: must lie in 0..{self.steps}, not {low}..{high}")

    @property
    def _any(self) -> Tensor:
        tensor = self.numeric if self.numeric is not None else self.categorical
        assert tensor is not None  # noqa: S101  (held by __post_init__)
        return tensor

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return self._any.shape[0]

    @property
    def steps(self) -> int:
        """T, the number of steps with padding."""
        return self._any.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self._any.device

    @property
    def valid(self) -> Bool[Tensor, "B T"] | None:
        """Which steps are no padding; None when all are valid."""
        if self.lengths is None:
            return None
        return torch.arange(self.steps, device=self.device) < self.lengths[:, None]

    def map(self, function: Any) -> "Inputs":
        """Apply `function` to every tensor that is given."""
        parts = (self.numeric, self.categorical, self.lengths)
        return Inputs(*(None if part is None else function(part) for part in parts))

    def to(self, device: Any) -> "Inputs":
        """Copy to another device."""
        return self.map(lambda tensor: tensor.to(device))

    def check(self, config: InputConfig) -> None:
        """Raise `ShapeError` unless the channels are those of `config`."""
        for name, expected in (
            ("numeric", config.numeric),
            ("categorical", len(config.categorical)),
        ):
            tensor: Tensor | None = getattr(self, name)
            channels = 0 if tensor is None else tensor.shape[2]
            if channels != expected:
                given = "none given" if tensor is None else f"has shape {_where(tensor)}"
                raise ShapeError(f"{name}: the model takes {expected} channels, {given}")


def _where(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} on {tensor.device}"


def _check_tensor(name: str, value: Any, *, rank: int, floating: bool) -> None:
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name}: must be a tensor, not {type(value).__name__}")
    if value.dim() != rank:
        raise ShapeError(f"{name}: must have {rank} axes, has shape {list(value.shape)}")
    dtype = value.dtype
    integer = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    if not (dtype.is_floating_point if floating else integer):
        wanted = "floating point" if floating else "an integer type"
        raise ShapeError(f"{name}: must be {wanted}, not {dtype}")
