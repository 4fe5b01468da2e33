"""The layers to compare with: a Transformer block, kindred blocks, and a layer from a file.

Axes: B batch, T time, D width, H heads, E width of a head.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from sma_core.bench.sizes import LayerSizes
from sma_core.errors import ConfigError
from sma_core.interop.seqboat import NAMES

HEAD_WIDTH = 64


class Attention(nn.Module):
    """Causal multi-head attention without positions, over all steps before or a window of them.

    Parameters
    ----------
    width
        D.
    window
        A step sees itself and so many before it; None: all of them.
    """

    def __init__(self, width: int, window: int | None = None) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.window = window
        self.project = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Attend."""
        heads = self.project(x).unflatten(-1, (3, self.heads, -1))
        if self.window is not None and heads.is_cuda and heads.dtype != torch.float32:
            return self.output(_fused_window(heads, self.window))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mask = None
        if self.window is not None:  # off CUDA: right, not fast
            step = torch.arange(x.shape[1], device=x.device)
            apart = step[:, None] - step
            mask = (apart >= 0) & (apart <= self.window)
        seen = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
        return self.output(seen.transpose(1, 2).flatten(2))


def _fused_window(heads: Float[Tensor, "B T 3 H E"], window: int) -> Float[Tensor, "B T D"]:
    batch, steps = heads.shape[:2]
    query, key, value = heads.flatten(0, 1).unbind(1)
    border = torch.arange(0, (batch + 1) * steps, steps, device=heads.device, dtype=torch.int32)
    seen = varlen_attn(query, key, value, border, border, steps, steps, window_size=(window, 0))
    return cast("Tensor", seen).reshape(batch, steps, -1)


class Block(nn.Module):
    """Pre-norm block: a mixer over time, then a feed-forward layer four times as wide with GELU.

    Parameters
    ----------
    width
        D.
    mixer
        Takes and gives [B, T, D].
    """

    def __init__(self, width: int, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(width)
        self.mixer = mixer
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Run over T steps."""
        x = x + self.mixer(self.mixer_norm(x))
        return x + self.feed(self.feed_norm(x))


class _FirstOfTuple(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def transformer(sizes: LayerSizes) -> nn.Module:
    """Attention over all steps before, by stock scaled-dot-product attention."""
    return Block(sizes.width, Attention(sizes.width))


def sliding(sizes: LayerSizes) -> nn.Module:
    """Attention over as many steps as our window has rows."""
    return Block(sizes.width, Attention(sizes.width, sizes.window))


def gla(sizes: LayerSizes) -> nn.Module:
    """Gated linear attention of the package flash-linear-attention."""
    return _linear_attention("GatedLinearAttention", sizes)


def retnet(sizes: LayerSizes) -> nn.Module:
    """Multi-scale retention of the package flash-linear-attention."""
    return _linear_attention("MultiScaleRetention", sizes)


def _linear_attention(name: str, sizes: LayerSizes) -> nn.Module:
    layers = importlib.import_module("fla.layers")
    mixer = getattr(layers, name)(hidden_size=sizes.width, num_heads=4)
    return Block(sizes.width, _FirstOfTuple(mixer))


BLOCKS: dict[str, Callable[[LayerSizes], nn.Module]] = {
    "transformer": transformer,
    "sliding": sliding,
    "gla": gla,
    "retnet": retnet,
}


def has_linear_attention() -> bool:
    """Whether flash-linear-attention is installed."""
    return importlib.util.find_spec("fla") is not None


def load_class(spec: str) -> type[nn.Module]:
    """Import a layer's class from ``FILE:CLASS``.

    Raises
    ------
    ConfigError
        There is no such file or class, or the file does not import.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not file or not name:
        raise ConfigError(f"peer: must be FILE:CLASS, not {spec!r}")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"peer: there is no file {file}")
    found = importlib.util.spec_from_file_location("sma_bench_peer", path)
    if found is None or found.loader is None:
        raise ConfigError(f"peer: {file} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[module.__name__] = module  # classes of the file are looked up by it
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"peer: {file} does not import: {error}") from error
    layer = getattr(module, name, None)
    if not isinstance(layer, type) or not issubclass(layer, nn.Module):
        raise ConfigError(f"peer: {file} has no torch module of the name {name}")
    return layer


def build_peer(
    layer: type[nn.Module], sizes: LayerSizes, weights: Mapping[str, Tensor], *, steps: int
) -> nn.Module:
    """Make a layer with the interface of the published ``SeqBoatLayer``, with our weights.

    Parameters
    ----------
    layer
        Its class. Its instances take [T, B, D], time first.
    sizes
        Widths.
    weights
        The state dict of an `SMALayer` with these widths.
    steps
        Longest sequence.

    Raises
    ------
    ConfigError
        The class does not take the published arguments, or has other weights.
    """
    try:
        peer = layer(
            sizes.width,
            sizes.query_width,
            sizes.value_width,
            sizes.states,
            attention_activation="softmax",
            window_size=sizes.window,
            norm_type="layernorm",
            prenorm=True,
            rel_pos_bias="rotary",
            max_positions=steps,
        )
        theirs = peer.state_dict()
        ours = {name: weights[NAMES[name]].reshape(tensor.shape) for name, tensor in theirs.items()}
        peer.load_state_dict(ours)
    except Exception as error:
        raise ConfigError(
            f"peer: {layer.__name__} is not like the published SeqBoatLayer: "
            f"{type(error).__name__}: {error}"
        ) from error
    return peer


def peer_density(peer: nn.Module, run: Callable[[], Any]) -> float | None:
    """Share of steps that a peer runs, read off its ``q_router`` while `run` runs it."""
    router = getattr(peer, "q_router", None)
    if not isinstance(router, nn.Module):
        return None
    found: list[float] = []

    def read(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append((output.argmax(-1) == 1).double().mean().item())

    hook = router.register_forward_hook(read)
    try:
        run()
    finally:
        hook.remove()
    return found[-1] if found else None
