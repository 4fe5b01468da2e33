"""Read a layer of the public SeqBoat code: the state dict of its ``SeqBoatLayer``.

Ren et al., arXiv 2306.11197; the layer of ``standalone_seqboat.py`` in github.com/renll/SeqBoat,
with layer or batch norm, before or after. Widths, number of states, direction, kind of norm and
kind of positions are read from names and shapes; what leaves no trace there is asked for. Axes as
everywhere: D width, Z and H widths of queries and values, N EMA states, W window.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sma_core.config import (
    GatedAttentionConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    Norm,
    Score,
)
from sma_core.errors import CheckpointError, ConfigError
from sma_core.layer import SMALayer

_TABLE = "rel_pos_bias.rel_pos_bias"
_MEAN = "norm.norm.running_mean"
_COUNTER = "norm.norm.num_batches_tracked"

# Their names and ours. Every tensor but the table is the same, up to axes of length 1 at the end:
# the router's two logits come before the dense path, queries and keys before gate before value.
NAMES = {
    "norm.norm.weight": "norm.weight",
    "norm.norm.bias": "norm.bias",
    _MEAN: "norm.running_mean",
    "norm.norm.running_var": "norm.running_var",
    _COUNTER: "norm.num_batches_tracked",
    "ssm.delta": "ema.delta",
    "ssm.alpha": "ema.alpha",
    "ssm.beta": "ema.beta",
    "ssm.gamma": "ema.gamma",
    "ssm.omega": "ema.omega",
    "hx_proj.weight": "project.weight",
    "hx_proj.bias": "project.bias",
    "q_router.temp": "policy.theta",
    "mx_proj.weight": "pool.0.project.weight",
    "mx_proj.bias": "pool.0.project.bias",
    "gamma": "pool.0.gain",
    "beta": "pool.0.shift",
    _TABLE: "pool.0.positions.table",
    "h_proj.weight": "pool.0.output.weight",
    "h_proj.bias": "pool.0.output.bias",
}


class _Sizes(NamedTuple):
    """What the shapes of a state dict say."""

    width: int
    query_width: int
    value_width: int
    states: int
    directions: int
    table: int | None  # entries; None: rotary
    norm: Norm


def load_layer(
    state_dict: Mapping[str, Any],
    *,
    window: int,
    score: Score,
    prenorm: bool,
    local: bool | None = None,
    norm_affine: bool = True,
    dropout: float = 0.0,
) -> SMALayer:
    """Make a layer with the weights of a ``SeqBoatLayer``, on their device.

    Outputs and gradients are the original's up to rounding. Its truncated EMA kernels, and its
    dropout of attention weights and of values, have no counterpart here.

    Parameters
    ----------
    state_dict
        Of the layer alone. Of a layer in a model: the entries under its prefix, cut off.
    window
        W, its ``window_size``.
    score
        Its ``attention_activation``.
    prenorm
        Its ``prenorm``.
    local
        Its ``local_pos``. Needed only where the table of positions has 6 W - 1 entries, the
        length of every local table, which a table by distance in time may have by chance.
    norm_affine
        Its ``norm_affine``. If false its norm has no weights; ours holds 1 and 0, frozen.
    dropout
        Its ``dropout``.

    Returns
    -------
    SMALayer
        In training mode, as every new module. ``layer.config`` holds what was read; the inputs
        and the head in it are placeholders. The layer of a model with the same settings takes
        this layer's ``state_dict``.

    Raises
    ------
    CheckpointError
        A key is unknown or missing, or its tensor's shape does not fit; the message names it.
    ConfigError
        An option is out of range, or does not fit the tensors.
    """
    sizes = _read_sizes(state_dict)
    _check(state_dict, sizes, norm_affine=norm_affine)
    config = ModelConfig(
        inputs=InputConfig(numeric=1),
        head=HeadConfig(kind="step_classification", outputs=1),
        width=sizes.width,
        layers=1,
        dropout=dropout,
        states=sizes.states,
        pool=(_attention(sizes, window=window, score=score, local=local),),
        bidirectional=sizes.directions == 2,
        prenorm=prenorm,
        norm=sizes.norm,
    )
    weight = state_dict["h_proj.weight"]
    # Start values are overwritten: drawing them must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        layer = SMALayer(config, 0).to(weight.device, weight.dtype)
    if not norm_affine:
        layer.norm.requires_grad_(False)
    layer.load_state_dict(layer.state_dict() | translate(state_dict, config))
    return layer


def translate(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename and reshape their tensors to ours: weights, or gradients of these.

    Entries of a position table that the layer can never read have no place in ours.

    Parameters
    ----------
    tensors
        By their names, with their shapes; any subset.
    config
        Of the layer that `load_layer` made.
    """
    attention = cast(GatedAttentionConfig, config.pool[0])
    ours = {}
    for name, tensor in tensors.items():
        if name == _TABLE:
            tensor = _table(tensor, attention, causal=config.causal)
        elif name.startswith("ssm.") and tensor.dim() == 3:
            tensor = tensor.squeeze(-1)
        ours[NAMES[name]] = tensor
    return ours


def _table(table: Tensor, attention: GatedAttentionConfig, *, causal: bool) -> Tensor:
    """Their bias of key j for query i, read at ``j - i``, as ours, read at ``i - j``.

    In a local table, which spans 3 W positions, theirs is read at ``j - i + W``.
    """
    local = attention.position == "local"
    farthest = attention.window if local else attention.max_positions - 1
    middle = len(table) // 2 + (attention.window if local else 0)
    distance = torch.arange(0 if causal else -farthest, farthest + 1, device=table.device)
    return table.index_select(0, middle - distance)


def _attention(
    sizes: _Sizes, *, window: int, score: Score, local: bool | None
) -> GatedAttentionConfig:
    attention = GatedAttentionConfig(
        query_width=sizes.query_width,
        value_width=sizes.value_width,
        window=window,
        score=score,
        position="rotary" if sizes.table is None else "simple",
        max_positions=1024 if sizes.table is None else (sizes.table + 1) // 2,
    )
    if sizes.table is None:
        if local:
            raise ConfigError(f"local: the layer has no table ({_TABLE}): its positions are rotary")
        return attention
    entries = 6 * window - 1
    if local is None and sizes.table == entries:
        raise ConfigError(
            f"local: {_TABLE} has {entries} entries, as a local table of window {window} has, and "
            "as one by distance in time may have: say local=True or local=False"
        )
    if local and sizes.table != entries:
        raise ConfigError(
            f"local, window: a local table of window {window} has {entries} entries, {_TABLE} has "
            f"{sizes.table}"
        )
    return replace(attention, position="local") if local else attention


def _read_sizes(state_dict: Mapping[str, Any]) -> _Sizes:
    width, value_width = _shape(state_dict, "h_proj.weight", rank=2)
    channels, states, _ = _shape(state_dict, "ssm.delta", rank=3)
    if channels not in (width, 2 * width):
        raise CheckpointError(
            f"ssm.delta: has {channels} channels, the width of h_proj.weight is {width}: neither "
            "one direction nor two"
        )
    table = None
    if _TABLE in state_dict:
        (table,) = _shape(state_dict, _TABLE, rank=1)
        if table % 2 == 0:
            raise CheckpointError(f"{_TABLE}: has {table} entries; a table has an odd number")
    return _Sizes(
        width=width,
        query_width=_shape(state_dict, "gamma", rank=2)[1],
        value_width=value_width,
        states=states,
        directions=channels // width,
        table=table,
        norm="batch" if _MEAN in state_dict else "layer",
    )


def _shape(state_dict: Mapping[str, Any], name: str, *, rank: int) -> tuple[int, ...]:
    if name not in state_dict:
        raise CheckpointError(f"{name}: missing from the state dict of a SeqBoat layer")
    tensor = state_dict[name]
    if not isinstance(tensor, Tensor) or tensor.dim() != rank or not tensor.numel():
        raise CheckpointError(f"{name}: must be a tensor of {rank} axes, not {_describe(tensor)}")
    return tuple(tensor.shape)


def _shapes(sizes: _Sizes, *, norm_affine: bool) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a layer of these sizes."""
    width, query, value = sizes.width, sizes.query_width, sizes.value_width
    channels = sizes.directions * width
    shapes: dict[str, tuple[int, ...]] = {
        "ssm.delta": (channels, sizes.states, 1),
        "ssm.alpha": (channels, sizes.states, 1),
        "ssm.beta": (channels, sizes.states, 1),
        "ssm.gamma": (channels, sizes.states),
        "ssm.omega": (width,),
        "hx_proj.weight": (2 + width, width),
        "hx_proj.bias": (2 + width,),
        "q_router.temp": (1,),
        "mx_proj.weight": (query + 2 * value, width),
        "mx_proj.bias": (query + 2 * value,),
        "gamma": (2, query),
        "beta": (2, query),
        "h_proj.weight": (width, value),
        "h_proj.bias": (width,),
    }
    if norm_affine:
        shapes |= {"norm.norm.weight": (width,), "norm.norm.bias": (width,)}
    if sizes.norm == "batch":
        shapes |= {_MEAN: (width,), "norm.norm.running_var": (width,), _COUNTER: ()}
    if sizes.table is not None:
        shapes[_TABLE] = (sizes.table,)
    return shapes


def _check(state_dict: Mapping[str, Any], sizes: _Sizes, *, norm_affine: bool) -> None:
    """Raise `CheckpointError` unless every tensor is there, fits, and no other is."""
    shapes = _shapes(sizes, norm_affine=norm_affine)
    for name in shapes:
        if name not in state_dict:
            hint = "; is norm_affine=False?" if name.startswith("norm.") else ""
            raise CheckpointError(f"{name}: missing from the state dict of a SeqBoat layer{hint}")
    for name, tensor in state_dict.items():
        if name not in shapes:
            hint = " where norm_affine=False" if name in NAMES else ""
            raise CheckpointError(
                f"{name}: unknown in a SeqBoat layer{hint}; give one layer's keys without prefix"
            )
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shapes[name]:
            raise CheckpointError(
                f"{name}: must be a tensor {list(shapes[name])} to fit the others, not "
                f"{_describe(tensor)}"
            )
        if name != _COUNTER and not tensor.is_floating_point():
            raise CheckpointError(f"{name}: must be floating point, not {tensor.dtype}")


def _describe(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
