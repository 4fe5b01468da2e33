"""The costs of a pass as a table: a row for each part of each layer, with its share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sma_core.config import ArchitectureConfig
from sma_core.costs.flops import Rates
from sma_core.costs.memory import peak_bytes, state_bytes
from sma_core.costs.parts import Part, model_parts
from sma_core.errors import ConfigError
from sma_core.operations import Count, Extent

_WIDTHS = {torch.float32: 4, torch.bfloat16: 2}


@dataclass(frozen=True, kw_only=True)
class PartCosts:
    """Costs of one part of a model in one pass over a batch.

    Parameters
    ----------
    layer
        Index of its layer; None for embedding and head.
    name
        ``embedding``, ``head``; in a layer ``every step`` (norm, EMA, projection, sum), ``policy``,
        and the kind of each sub-module.
    activation
        Share of the steps at which it runs.
    flops
        Of the forward pass, as `step_flops` counts them.
    forward_bytes, training_bytes
        Least bytes through memory, of a forward pass and of a forward and backward pass.
    kept_bytes
        Activations held for the backward pass.
    """

    layer: int | None
    name: str
    activation: Count
    flops: Count
    forward_bytes: Count
    training_bytes: Count
    kept_bytes: Count


@dataclass(frozen=True, kw_only=True)
class ModelCosts:
    """Costs of one pass of a model over a batch, part by part; `print` shows a table.

    Parameters
    ----------
    config
        The model.
    batch, steps
        B and T of the pass.
    dtype
        In which products are computed.
    parts
        In the order of the forward pass.
    peak_bytes
        Most bytes of activations alive at once in a pass without gradient.
    """

    config: ArchitectureConfig
    batch: int
    steps: int
    dtype: torch.dtype
    parts: tuple[PartCosts, ...]
    peak_bytes: Count

    @property
    def flops(self) -> Count:
        """FLOPs of a forward pass."""
        return sum(part.flops for part in self.parts)

    @property
    def forward_bytes(self) -> Count:
        """Least bytes through memory in a forward pass."""
        return sum(part.forward_bytes for part in self.parts)

    @property
    def training_bytes(self) -> Count:
        """Least bytes through memory in a forward and backward pass."""
        return sum(part.training_bytes for part in self.parts)

    @property
    def kept_bytes(self) -> Count:
        """Activations held for the backward pass: the activation memory of a training step."""
        return sum(part.kept_bytes for part in self.parts)

    @property
    def state_bytes(self) -> int | None:
        """Bytes that the stream of one entity keeps; None for a bidirectional model."""
        return state_bytes(self.config) if self.config.causal else None

    def __str__(self) -> str:
        columns: dict[str, Callable[[PartCosts], Count]] = {
            "FLOPs": lambda part: part.flops,
            "bytes, forward": lambda part: part.forward_bytes,
            "bytes, training": lambda part: part.training_bytes,
            "bytes kept": lambda part: part.kept_bytes,
        }
        totals = {name: sum(map(value, self.parts)) for name, value in columns.items()}
        wide = max(len(part.name) for part in self.parts)
        narrow = "float32" if self.dtype is torch.float32 else "autocast to bfloat16"
        lines = [
            f"{self.batch} x {self.steps} steps, {narrow}",
            f"layer {'part':{wide}} {'on':>5}" + "".join(f"{name:>18}" for name in columns),
        ]
        for part in self.parts:
            layer = "" if part.layer is None else part.layer
            cells = "".join(
                f"{_short(value(part)):>12}{_share(value(part), totals[name]):>6}"
                for name, value in columns.items()
            )
            lines.append(f"{layer!s:>5} {part.name:{wide}} {part.activation:>5.0%}{cells}")
        cells = "".join(f"{_short(total):>12}{'':6}" for total in totals.values())
        lines.append(f"{'':5} {'all':{wide}} {'':5}{cells}".rstrip())
        state = self.state_bytes
        stream = "no stream" if state is None else f"{_short(state)}B a stream"
        lines.append(f"inference holds {_short(self.peak_bytes)}B at most; {stream}")
        return "\n".join(lines)


def model_costs(
    config: ArchitectureConfig,
    activation: Rates = (),
    *,
    batch: int = 1,
    steps: int = 1024,
    dtype: torch.dtype = torch.float32,
    fused_attention: bool = False,
) -> ModelCosts:
    """Costs of one pass of a model over a batch of whole sequences.

    Sequences are taken to be equally long and equally active.

    Parameters
    ----------
    config : ArchitectureConfig
        The model.
    activation : rates [L][M]
        Share of steps at which each sub-module of each layer runs, as of `RoutingTrace.rates`;
        unused by a model that does not route.
    batch, steps : int
        B and T.
    dtype : torch.dtype
        ``torch.float32``, or ``torch.bfloat16``: weights in float32 and autocast to bfloat16.
    fused_attention : bool
        Whether gated attention with softmax and rotary positions runs in a kernel that keeps no
        weights for backward.

    Raises
    ------
    ConfigError
        When an argument is out of range, the rates do not fit the model, or one of its parts has no
        list of operations or count of FLOPs.
    """
    for name, value in (("batch", batch), ("steps", steps)):
        if value < 1:
            raise ConfigError(f"{name}: must be at least 1, not {value}")
    if dtype not in _WIDTHS:
        known = " or ".join(map(str, _WIDTHS))
        raise ConfigError(f"dtype: must be {known}, not {dtype}")
    extent = Extent(
        rows=batch * steps, sequences=batch, narrow=_WIDTHS[dtype], fused=fused_attention
    )
    parts = model_parts(config, activation, extent)
    return ModelCosts(
        config=config,
        batch=batch,
        steps=steps,
        dtype=dtype,
        parts=tuple(map(_costs, parts)),
        peak_bytes=peak_bytes(config, parts, extent),
    )


def _costs(part: Part) -> PartCosts:
    forward = sum(operation.forward for operation in part.operations)
    return PartCosts(
        layer=part.layer,
        name=part.name,
        activation=part.activation,
        flops=part.flops,
        forward_bytes=forward,
        training_bytes=forward + sum(operation.backward for operation in part.operations),
        kept_bytes=sum(operation.kept for operation in part.operations),
    )


def _short(value: Count) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} T"


def _share(value: Count, total: Count) -> str:
    return f"{value / total:.0%}" if total else ""
