"""Operations of a whole model, part by part: embedding, layers with their pools, head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from sma_core.config import ArchitectureConfig, GRUConfig, ModelConfig, TransformerConfig
from sma_core.costs.flops import (
    Rates,
    check_rates,
    recurrence_flops,
    submodule_flops,
)
from sma_core.costs.members import recurrence, submodule_operations
from sma_core.dispatch import capacity_slots
from sma_core.errors import ConfigError
from sma_core.operations import Count, Extent, Operation, linear
from sma_core.routing import policy_class

_INDEX = 8  # bytes of an index
# Times that a norm keeps its input: scale norm as it is and divided, batch norm, less its mean, in
# all steps and in those that count.
_NORM_KEEPS = {"layer": 1, "scale": 2, "batch": 2}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a part of a model does in one pass over a batch.

    Parameters
    ----------
    layer
        Index of its layer; None for what stands before and behind the layers.
    name
        Of the part; of a sub-module, its kind.
    activation
        Share of the steps at which it runs.
    flops
        As `step_flops` counts them.
    operations
        In the order of the forward pass.
    pooled
        Whether it is a sub-module.
    """

    layer: int | None = None
    name: str
    activation: Count = 1.0
    flops: Count
    operations: tuple[Operation, ...]
    pooled: bool = False


def model_parts(config: ArchitectureConfig, activation: Rates, extent: Extent) -> list[Part]:
    """Parts of a model, in the order of the forward pass.

    Raises
    ------
    ConfigError
        When the rates do not fit the model, or a part has no list of operations.
    """
    if isinstance(config, ModelConfig):
        check_rates(config, activation)
        layers = [
            part
            for index, rates in enumerate(activation)
            for part in _layer(config, index, rates, extent)
        ]
    elif isinstance(config, TransformerConfig):
        layers = [_transformer_layer(config, index, extent) for index in range(config.layers)]
    elif isinstance(config, GRUConfig):
        layers = [_gru_layer(config, index, extent) for index in range(config.layers)]
    else:
        raise ConfigError(f"architecture: no list of operations for {config.architecture!r}")
    return [_embedding(config, extent), *layers, _head(config, extent)]


def _embedding(config: ArchitectureConfig, extent: Extent) -> Part:
    rows, wide, width = extent.rows, extent.wide, config.width
    numeric, tables = config.inputs.numeric, config.inputs.categorical
    indices = rows * len(tables) * _INDEX
    # Of a table only the rows that occur; its gradient is as large as the table.
    weights = (2 * numeric + 1) * width * wide if numeric else 0
    read = indices + rows * numeric * wide
    written = rows * width * wide
    table = sum(min(size, rows) * width * wide for size in tables)
    embed = Operation(
        name="embed",
        read=read,
        written=written,
        weights=weights + table,
        kept=rows * 2 * numeric * extent.narrow + indices,
        working=rows * 2 * numeric * wide,
        back=read + written + weights + sum(tables) * width * wide,
    )
    flops = 2 * 2 * numeric * width * rows
    return Part(name="embedding", flops=flops, operations=(embed,))


def _head(config: ArchitectureConfig, extent: Extent) -> Part:
    width, outputs = config.width, config.head.outputs
    kind = config.norm if isinstance(config, ModelConfig) else "layer"
    normalised = not isinstance(config, ModelConfig) or config.prenorm
    norm = [_norm(kind, width, extent)] if normalised else []
    if config.head.kind == "sequence_classification":
        pool = Operation(
            name="pool",
            read=extent.rows * width * extent.wide,
            written=extent.sequences * width * extent.wide,
            back=(extent.rows + extent.sequences) * width * extent.wide,
        )
        final = linear(
            "predict", replace(extent, rows=extent.sequences), width, outputs, kept=width
        )
        operations = (*norm, pool, final)
    else:
        operations = (*norm, linear("predict", extent, width, outputs, kept=width))
    flops = 2 * width * outputs * extent.rows
    return Part(name="head", flops=flops, operations=operations)


def _layer(config: ModelConfig, index: int, rates: Sequence[float], extent: Extent) -> list[Part]:
    width, pool, rows = config.width, len(config.pool), extent.rows
    stream = rows * width * extent.wide
    read_out = linear("project", extent, width, 2 * pool + width)
    combine = Operation(
        name="combine",
        read=2 * stream,
        written=stream,
        kept=stream * (2 if config.dropout else 1),  # the mask of dropout is as large
        working=stream,
        back=3 * stream,  # both inputs have the same gradient
    )
    ema = recurrence(config.states, width, config.causal, extent, fft=config.ema == "fft")
    if config.dropout:
        ema = replace(ema, kept=ema.kept + rows * width * extent.narrow)
    always = (_norm(config.norm, width, extent), ema, read_out, combine)
    policy = policy_class(config.policy)
    parts = [
        Part(
            layer=index,
            name="every step",
            flops=(2 * width * (2 * pool + width) + recurrence_flops(config) / config.layers)
            * rows,
            operations=always,
        ),
        Part(
            layer=index,
            name="policy",
            flops=policy.flops(config.policy, width=width, pool=pool) * rows,
            operations=tuple(
                policy.operations(config.policy, width=width, pool=pool, extent=extent)
            ),
        ),
    ]
    for place, (member, rate) in enumerate(zip(config.pool, rates, strict=True)):
        active = replace(extent, rows=_rows(config, place, rate, extent))
        parts.append(
            Part(
                layer=index,
                name=member.kind,
                activation=rate,
                flops=rate * submodule_flops(member, width, config.causal) * rows,
                operations=(
                    _compress(config, extent, active),
                    *submodule_operations(member, width, config.causal, active),
                    _extract(config, extent, active),
                ),
                pooled=True,
            )
        )
    return parts


def _rows(config: ModelConfig, place: int, rate: Count, extent: Extent) -> Count:
    """Rows that a sub-module works on; in the layout of fixed capacity, its slots."""
    if config.dispatch != "capacity":
        return rate * extent.rows
    share = Fraction(config.capacity_shares[place]).limit_denominator(10**6)
    return extent.sequences * capacity_slots(share, round(extent.longest))


def _norm(kind: str, width: int, extent: Extent) -> Operation:
    stream = extent.rows * width * extent.wide
    return Operation(
        name="norm",
        read=stream,
        written=stream,
        weights=(1 if kind == "scale" else 2 * width) * extent.wide,
        kept=stream * _NORM_KEEPS[kind] + 2 * extent.rows * extent.wide,
    )


def _compress(config: ModelConfig, steps: Extent, active: Extent) -> Operation:
    """Gather the active rows; the backward adds their gradients to that of the stream."""
    rows = active.rows * config.width * active.narrow
    # Packed rows are told by an index, those of the other layouts by the slot of each step.
    index = (active.rows if config.dispatch == "packed" else steps.rows) * _INDEX
    return Operation(
        name="compress",
        read=rows + steps.rows,
        written=rows,
        kept=rows + index,
        working=index,
        back=2 * rows,
    )


def _extract(config: ModelConfig, steps: Extent, active: Extent) -> Operation:
    """Weigh rows by their confidence and add them to the stream, where they are active."""
    rows, wide, width = active.rows, active.wide, config.width
    numbers = rows * width * active.narrow
    # A confidence that learns needs rows as they were, beside what is put back.
    learns = policy_class(config.policy).learns and config.dispatch != "padded"
    weighed = rows * width * wide if learns else 0
    return Operation(
        name="extract",
        read=numbers + rows * wide + rows * width * wide,
        written=rows * width * wide,
        kept=numbers + rows * wide + weighed,
        working=2 * steps.rows * width * wide,  # laid out over all steps, and the new sum
        # Gradient of the sum and the rows, to gradients of the rows and of the confidence.
        back=rows * width * wide + 2 * (numbers + rows * wide),
    )


def _transformer_layer(config: TransformerConfig, index: int, extent: Extent) -> Part:
    width, hidden, window = config.width, config.hidden_width, config.window
    rows, size, wide = extent.rows, extent.narrow, extent.wide
    stream = rows * width * wide
    norm = _norm("layer", width, extent)
    block = min(window, extent.longest)
    seen = window + block
    spans = rows * (2 * width * seen / block + seen) * size  # of keys, of values, and the mask
    add = Operation(name="add", read=2 * stream, written=stream, back=2 * stream)
    operations = (
        norm,
        linear("project", extent, width, 3 * width, kept=width),
        Operation(
            name="queries and keys",
            read=rows * 2 * width * size,
            written=rows * 2 * width * size,
            # Its factors serve every layer.
            kept=rows * width / config.heads * wide / config.layers,
        ),
        Operation(
            name="attend",
            read=rows * 3 * width * size,
            written=rows * width * size,
            kept=rows * (2 * width * size + config.heads * wide) + spans,
            # The projection too, and keys and values behind those of the past.
            working=spans + rows * (seen + 4 * width * size),
        ),
        linear("output", extent, width, width),
        add,
        norm,
        linear("expand", extent, width, hidden, kept=width + hidden),
        linear("contract", extent, hidden, width, kept=hidden),
        add,
    )
    flops = 2 * width * 4 * width + 2 * 2 * width * hidden + 2 * 2 * (window + 1) * width
    return Part(layer=index, name="every step", flops=flops * rows, operations=operations)


def _gru_layer(config: GRUConfig, index: int, extent: Extent) -> Part:
    width, rows, size = config.width, extent.rows, extent.narrow
    operations = (
        linear("gates of the input", extent, width, 3 * width, kept=width),
        Operation(
            name="recurrence",
            read=rows * 3 * width * size,
            written=rows * width * size,
            weights=3 * width * (width + 1) * extent.wide,
            # Of each step three gates, what two of them take from the state, the state before it
            # and that after it.
            kept=rows * 7 * width * size,
        ),
    )
    flops = 2 * 6 * width**2 * rows
    return Part(layer=index, name="every step", flops=flops, operations=operations)
