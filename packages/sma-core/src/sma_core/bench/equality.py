"""What is timed must be right: against the specification, against a peer, against float32.

The small model is compared with `sma_core.reference` in float64, tensor by tensor. What is timed
is then compared, on the very data, with that model's plain path in float32.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sma_core.bench.peers import build_peer
from sma_core.bench.routing import draw_input, draw_routing, fix_routing
from sma_core.bench.sizes import LayerSizes
from sma_core.block import SMABlock
from sma_core.config import AlwaysConfig, HeadConfig, InputConfig, ModelConfig
from sma_core.inputs import Inputs
from sma_core.interop.seqboat import NAMES
from sma_core.model import SMAModel
from sma_core.reference import reference_forward


class Tolerance(NamedTuple):
    """Largest relative difference, ||a - b|| / ||b||, of outputs and of gradients, and why."""

    output: float
    gradient: float
    reason: str


TOLERANCES = {
    "float32": Tolerance(2e-5, 2e-4, "sums of many terms in another order; backward sums more"),
    "peer, float32": Tolerance(1e-4, 1e-3, "the same, and the rounding of a peer's FFT"),
    "bfloat16": Tolerance(2e-2, 5e-2, "8 bits of mantissa, rounded at every product"),
}
# A gradient below this share of the largest one is compared with that share: rounding leaves no
# relative precision in what is zero in exact arithmetic.
_VANISHING = 1e-2

_SMALL = LayerSizes(width=32, query_width=16, value_width=32, states=4, window=32)
_DENSITY = 0.3


class MismatchError(Exception):
    """Two layers that must be equal are not: nothing may be timed."""


@dataclass(frozen=True)
class Outcome:
    """Output and gradients of one step, by our names.

    Parameters
    ----------
    output
        Of the layer.
    gradients
        Of the input, ``x``, and of weights.
    """

    output: Float[Tensor, "B T D"]
    gradients: Mapping[str, Tensor]


def relative_difference(a: Tensor, b: Tensor, floor: float = 0.0) -> float:
    """Divide ||a - b|| by the larger of ||b|| and `floor`; infinite for a NaN or a wrong shape."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.detach().double(), b.detach().double()
    difference = ((a - b.to(a.device)).norm() / max(b.norm().item(), floor, 1e-30)).item()
    return difference if difference == difference else float("inf")


def assert_equal(what: str, found: Outcome, expected: Outcome, kind: str) -> None:
    """Raise unless two outcomes agree within a row of `TOLERANCES`.

    Gradients in bfloat16 are compared all together: single small ones are sums that cancel.

    Raises
    ------
    MismatchError
        They differ; the message says where and how much.
    """
    limit = TOLERANCES[kind]
    pairs = [("output", found.output, expected.output, limit.output)]
    shared = [name for name in found.gradients if name in expected.gradients]
    mine, theirs = ({n: o.gradients[n] for n in shared} for o in (found, expected))
    if kind == "bfloat16":
        weights = [n for n in shared if n != "x"]
        pairs += [
            (f"gradient of {name}", _joined(mine, names), _joined(theirs, names), limit.gradient)
            for name, names in (("the input", ["x"]), ("all weights", weights))
            if set(names) <= set(shared) and names
        ]
    else:
        pairs += [(f"gradient of {n}", mine[n], theirs[n], limit.gradient) for n in shared]
    largest = max((g.double().norm().item() for g in theirs.values()), default=0.0)
    for name, a, b, allowed in pairs:
        floor = _VANISHING * largest if name != "output" else 0.0
        difference = relative_difference(a, b, floor)
        if not difference <= allowed:
            raise MismatchError(
                f"{what}: {name} differs by {difference:.3g}, allowed is {allowed:g} "
                f"({kind}: {limit.reason}); nothing is timed"
            )


def _joined(tensors: Mapping[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in names])


def outcome(
    run: Callable[[Tensor], Tensor],
    module: nn.Module,
    x: Tensor,
    gradient: Tensor,
    *,
    names: Mapping[str, str] | None = None,
) -> Outcome:
    """Run one step forward and backward.

    Parameters
    ----------
    run
        What is called: `module`, or its compiled form.
    module
        Whose weights have gradients.
    x, gradient
        Input, and gradient of the output.
    names
        Of the weights, to ours; None where they are ours.
    """
    x = x.detach().requires_grad_()
    module.zero_grad(set_to_none=True)
    y = run(x)
    y.backward(gradient.to(y.dtype))
    # Copies, as a CUDA graph writes its results to the same place each time.
    found = {"x": torch.zeros_like(x) if x.grad is None else x.grad.clone()}
    for name, weight in module.named_parameters():
        name = name.removeprefix("layer.") if names is None else names.get(name, "")
        if name:
            grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
            found[name] = grad.squeeze(-1) if grad.dim() == 3 else grad  # as ours are
    module.zero_grad(set_to_none=True)
    return Outcome(y.detach().clone(), found)


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 while the block runs."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_small(
    device: torch.device,
    *,
    steps: int = 300,
    peer: type[nn.Module] | None = None,
    seed: int = 0,
) -> list[str]:
    """Compare a small eager layer in every layout, and a peer, with the specification.

    Parameters
    ----------
    device
        Where the layers run. The specification runs on the CPU in float64.
    steps
        T; sequences of more than about 110 have more active rows than the window.
    peer
        Class of a layer with the published interface.
    seed
        Of weights and data.

    Returns
    -------
    list of str
        What was found equal.

    Raises
    ------
    MismatchError
        Something differs.
    """
    done = []
    for routing in ("routed", "dense"):
        problem = _Problem(steps, seed, dense=routing == "dense")
        expected = problem.specification()
        x, gradient = problem.x.to(device), problem.gradient.to(device)
        with exact_products():
            for layout in ("packed", "padded", "capacity"):
                block = problem.block(layout).to(device)
                name = f"{routing}, {layout}"
                found = outcome(block, block, x, gradient)
                assert_equal(f"{name} against the specification", found, expected, "float32")
                with torch.autocast(device.type, torch.bfloat16):
                    found = outcome(block, block, x, gradient)
                assert_equal(f"{name} against the specification", found, expected, "bfloat16")
                done.append(name)
            if peer is not None and routing == "routed":
                theirs = build_peer(peer, _SMALL, problem.weights, steps=steps).to(device)
                found = outcome(TimeFirst(theirs), theirs, x, gradient, names=NAMES)
                assert_equal("peer against the specification", found, expected, "peer, float32")
                done.append("peer")
    return done


def enlarge_weights(module: nn.Module, *, generator: torch.Generator) -> None:
    """Draw weights so large that every path matters: at its start values attention is faint."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, device=generator.device)
            if name.endswith(("gain", "theta", "norm.weight")):
                weight.copy_(1 + 0.3 * noise)
            elif weight.dim() == 2 and "ema" not in name:
                weight.copy_(noise / weight.shape[1] ** 0.5)
            else:
                weight.copy_(0.5 * noise)


class TimeFirst(nn.Module):
    """A layer that takes [T, B, D], as one that takes [B, T, D]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Run over T steps."""
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class _Problem:
    """A small layer and a batch for it."""

    def __init__(self, steps: int, seed: int, *, dense: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._fields = {"policy": AlwaysConfig()} if dense else {}
        active = draw_routing(2, steps, _DENSITY, generator=generator)
        self.x = draw_input(active, _SMALL.width, generator=generator)
        self.gradient = torch.randn(self.x.shape, generator=generator)
        self._capacity = 1.0 if dense else active.sum(1).max().item() / steps
        block = _SMALL.block(**self._fields)
        enlarge_weights(block, generator=generator)
        if not dense:
            fix_routing(block, self.x, active)
        self.weights = block.layer.state_dict()

    def block(self, layout: str) -> SMABlock:
        """Make the layer in a layout."""
        block = _SMALL.block(dispatch=layout, capacity=self._capacity, **self._fields)
        block.layer.load_state_dict(self.weights)
        return block

    def specification(self) -> Outcome:
        """Outcome by the equations, in float64."""
        width = _SMALL.width
        config = ModelConfig(
            inputs=InputConfig(numeric=width),
            head=HeadConfig(kind="forecast", outputs=width),
            width=width,
            layers=1,
            **_SMALL.fields(**self._fields),
        )
        model = SMAModel(config).double()
        # What goes in and what comes out are the layer's own: no map and no norm around it.
        model.config = replace(config, prenorm=False)
        layer = model.layers[0]
        layer.load_state_dict(self.weights)
        with torch.no_grad():
            for linear in (cast("nn.Linear", model.embed.numeric), model.head):
                linear.weight.copy_(torch.eye(*linear.weight.shape))
                linear.bias.zero_()
        x = self.x.double().requires_grad_()
        y = torch.stack(reference_forward(model, Inputs(x)).prediction)
        y.backward(self.gradient.double())
        leaves = {"x": x, **dict(layer.named_parameters())}
        return Outcome(y.detach(), {n: cast("Tensor", leaf.grad) for n, leaf in leaves.items()})
