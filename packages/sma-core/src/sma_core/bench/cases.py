"""One layer made ready to be timed: its data, its compiled form, a step forward and backward."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sma_core.bench.equality import Outcome, exact_products, outcome
from sma_core.bench.peers import BLOCKS, build_peer, peer_density
from sma_core.bench.routing import draw_input, draw_routing, fix_routing, ran
from sma_core.bench.sizes import LayerSizes
from sma_core.block import SMABlock
from sma_core.config import AlwaysConfig
from sma_core.interop.seqboat import NAMES

Kind = Literal["train", "infer"]
_ROWS = 32  # slots of a sequence come in multiples of this


class Variant(NamedTuple):
    """A way to run our layer.

    `mode` is that of `torch.compile`, None runs eagerly; a `dense` one runs every step. With
    ``reduce-overhead`` a whole model runs in CUDA graphs of the compiler, which copy its input to
    where they read it, and a layer in graphs of its own, which read it where it lies.
    """

    dispatch: str
    mode: str | None
    dense: bool = False


VARIANTS = {
    "capacity": Variant("capacity", "reduce-overhead"),
    "capacity_no_graphs": Variant("capacity", "default"),
    "packed": Variant("packed", "default"),
    "eager": Variant("packed", None),
    "padded": Variant("padded", None),
    "dense": Variant("packed", "default", dense=True),
}


@dataclass
class Case:
    """One layer, ready.

    Parameters
    ----------
    name
        In tables.
    module
        Owns the weights.
    run
        What is called: the module or its compiled form.
    x, gradient
        Input, and gradient of the output.
    rounded
        Whether products are rounded to bfloat16, by autocast.
    time_first
        Whether `x` is [T, B, D].
    names
        Of the weights, to ours; None where they are ours.
    graphs
        Whether each kind of step is recorded as one CUDA graph, and replayed.
    truth
        Which outcome in float32 it must have: ``routed``, ``dense``, or none for other layers.
    """

    name: str
    module: nn.Module
    run: Callable[[Tensor], Tensor]
    x: Tensor
    gradient: Tensor
    rounded: bool
    time_first: bool = False
    names: Mapping[str, str] | None = None
    graphs: bool = False
    truth: str = ""
    _recorded: dict[Kind, torch.cuda.CUDAGraph] = field(default_factory=dict)

    def train_step(self) -> None:
        """Forward and backward from a given gradient."""
        self._replay("train")

    def infer_step(self) -> None:
        """Forward without gradient."""
        self._replay("infer")

    def compute(self, kind: Kind) -> None:
        """Do a step without a CUDA graph."""
        if kind == "infer":
            with torch.no_grad(), self._autocast():
                self.run(self.x)
        else:
            self.x.grad = None
            for weight in self.module.parameters():
                weight.grad = None
            with self._autocast():
                y = self.run(self.x)
            y.backward(self.gradient.to(y.dtype))
        self._end()

    def outcome(self) -> Outcome:
        """Output and gradients, batch first."""
        with self._autocast():
            found = outcome(self.run, self.module, self.x, self.gradient, names=self.names)
        self._end()
        if not self.time_first:
            return found
        turned = {"x": found.gradients["x"].transpose(0, 1)}
        return Outcome(found.output.transpose(0, 1), {**found.gradients, **turned})

    def density(self) -> float | None:
        """Share of steps that run; None where no one can tell.

        Raises
        ------
        RuntimeError
            A step that was to run found no slot.
        """
        if isinstance(self.module, SMABlock):
            with torch.no_grad(), self._autocast():
                self.run(self.x)
            share, dropped = ran(self.module)
            self._end()
            if dropped:
                raise RuntimeError(f"{dropped} steps found no slot")
            return share
        return peer_density(self.module, self.infer_step)

    def release(self) -> None:
        """Give up gradients."""
        self.x.grad = None
        self.module.zero_grad(set_to_none=True)

    def _replay(self, kind: Kind) -> None:
        if not self.graphs:
            self.compute(kind)
            return
        if kind not in self._recorded:
            # On a stream of its own, as capture asks.
            side = torch.cuda.Stream(self.x.device)
            side.wait_stream(torch.cuda.current_stream(self.x.device))
            with torch.cuda.stream(side):
                for _ in range(2):
                    self.compute(kind)
            torch.cuda.current_stream(self.x.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.compute(kind)
            self._recorded[kind] = graph
        self._recorded[kind].replay()

    def _autocast(self) -> Any:
        return torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.rounded)

    def _end(self) -> None:
        if isinstance(self.module, SMABlock):
            self.module.decision = None  # a kept decision would keep the step's graph alive


class Problem:
    """Weights and data of one length and one density, and the cases made of them.

    Parameters
    ----------
    sizes
        Widths.
    batch, steps
        B and T.
    density
        Share of steps that run, exactly.
    device
        Where all lies.
    rounded
        Whether the cases round products to bfloat16.
    compiles
        Whether to use `torch.compile`.
    seed
        Of weights and data.
    """

    def __init__(
        self,
        sizes: LayerSizes,
        *,
        batch: int,
        steps: int,
        density: float,
        device: torch.device,
        rounded: bool,
        compiles: bool,
        seed: int,
    ) -> None:
        self.sizes, self.batch, self.steps = sizes, batch, steps
        self.device, self.rounded, self.compiles = device, rounded, compiles
        torch.manual_seed(seed)
        generator = torch.Generator(device).manual_seed(seed)
        self.active: Bool[Tensor, "B T"] = draw_routing(batch, steps, density, generator=generator)
        self.x: Float[Tensor, "B T D"] = draw_input(self.active, sizes.width, generator=generator)
        self.gradient = torch.randn(self.x.shape, generator=generator, device=device)
        self.x.requires_grad_()
        block = sizes.block().to(device)
        with exact_products():
            fix_routing(block, self.x[:, :4096].detach(), self.active[:, :4096])
        self.weights = block.layer.state_dict()
        largest = int(self.active.sum(1).max())
        slots = -(-largest // _ROWS) * _ROWS
        if steps > 10**6:  # a share is held to a millionth
            slots += _ROWS
        self.capacity = min(steps, max(1, slots)) / steps

    def ours(self, name: str) -> Case:
        """Make a case of `VARIANTS`."""
        variant = VARIANTS[name]
        block = self._block(variant.dispatch, dense=variant.dense)
        compiles = self.compiles and variant.mode is not None
        run: Any = block
        if compiles:
            # Tables move to the device in their first pass. In a graph that would be a copy from
            # the host, which CUDA graphs cannot hold, and a second compilation.
            with torch.no_grad():
                block(self.x[:, :_ROWS])
            run = torch.compile(block, fullgraph=variant.dispatch == "capacity")
        return Case(
            name=name,
            module=block,
            run=run,
            x=self.x,
            gradient=self.gradient,
            rounded=self.rounded,
            graphs=compiles and variant.mode == "reduce-overhead" and self.device.type == "cuda",
            truth="dense" if variant.dense else "routed",
        )

    def block_peer(self, name: str) -> Case:
        """Make a case of `peers.BLOCKS`, compiled."""
        module = BLOCKS[name](self.sizes).to(self.device)
        # Kernels that are compiled already gain nothing, and may not trace.
        compiles = self.compiles and name not in ("gla", "retnet")
        return Case(
            name=name,
            module=module,
            run=torch.compile(module) if compiles else module,
            x=self.x,
            gradient=self.gradient,
            rounded=self.rounded,
        )

    def file_peer(self, layer: type[nn.Module]) -> Case:
        """Make a case of a layer with the published interface and our weights, eager."""
        module = build_peer(layer, self.sizes, self.weights, steps=self.steps).to(self.device)
        return Case(
            name="reference",
            module=module,
            run=module,
            x=self.x.detach().transpose(0, 1).contiguous().requires_grad_(),
            gradient=self.gradient.transpose(0, 1).contiguous(),
            rounded=self.rounded,
            time_first=True,
            names=NAMES,
            truth="routed",
        )

    def truth(self, kind: str) -> Outcome:
        """Outcome of the plain path: packed, eager, float32."""
        block = self._block("packed", dense=kind == "dense")
        with exact_products():
            return outcome(block, block, self.x, self.gradient)

    def _block(self, dispatch: str, *, dense: bool) -> SMABlock:
        fields: dict[str, Any] = {"policy": AlwaysConfig()} if dense else {}
        block = self.sizes.block(dispatch=dispatch, capacity=self.capacity, **fields)
        weights = {n: w for n, w in self.weights.items() if not (dense and n.startswith("policy"))}
        block.layer.load_state_dict(weights)
        return block.to(self.device)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Room for the compiled forms of many layers at once, and none of them afterwards."""
    torch.compiler.reset()
    try:
        with torch._dynamo.config.patch(recompile_limit=64):
            yield
    finally:
        torch.compiler.reset()
