"""One of two processes that train a block together; a program, as a hang must not take the tests.

``python -m tests.core.distributed RANK FOLDER`` trains with DDP and with FSDP2 on one sequence of
`sequences` and compares its gradients with those of one process on both.
"""

import sys

import torch
from tests.core.models import POOL
from tests.tolerances import assert_close
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from sma_core import ActiveEMAConfig, LocalConvolutionConfig, SMABlock

WIDTH, STEPS = 8, 12
KINDS = (POOL[0], POOL[1], LocalConvolutionConfig(kernel_size=3), ActiveEMAConfig(states=2))


class Host(nn.Module):
    """A block between two maps."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.block = SMABlock(WIDTH, pool=KINDS, states=2, dispatch=layout)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x))).square().mean((1, 2))


def sequences(model: Host) -> Tensor:
    """Two sequences; every router is set so that it runs in the first and never in the second."""
    for seed in range(1000):
        x = torch.randn(2, STEPS, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            model(x)
            margin = model.block.decision.margin  # type: ignore[union-attr]
            low, high = margin[1].amax(0), margin[0].amax(0)  # type: ignore[index]
            if (high > low).all():
                skip = slice(0, 2 * len(KINDS), 2)
                model.block.layer.project.bias[skip] += (low + high) / 2
                return x
    raise AssertionError("no seed fits")


def compare(kind: str, layout: str, rank: int) -> None:
    """Compare gradients of one way to train; the other process does the same."""
    torch.manual_seed(0)
    model = Host(layout).double()
    x = sequences(model)
    model(x).mean().backward()
    decision = model.block.decision
    assert decision is not None
    assert decision.active.any(1).tolist() == [[True] * len(KINDS), [False] * len(KINDS)]
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    parallel: nn.Module = model
    if kind == "ddp":
        parallel = nn.parallel.DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (2,))
        fully_shard(model.block, mesh=mesh)
        fully_shard(model, mesh=mesh)  # in place
    for _ in range(2):  # a second pass hangs where the first left a gradient open
        parallel.zero_grad()
        parallel(x[rank : rank + 1]).mean().backward()
    named = dict(model.named_parameters())
    assert named.keys() == expected.keys()
    for name, parameter in named.items():
        gradient = parameter.grad
        assert gradient is not None, name
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        # One scale for all: a gradient that vanishes has no precision of its own.
        assert_close(1 + whole, 1 + expected[name], "float64")
    dist.barrier()
    print(kind, layout)


def main(rank: int, folder: str) -> None:
    """Run every case, in the order in which the other process does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for layout in ("packed", "padded", "capacity"):
        compare("ddp", layout, rank)
    compare("fsdp", "packed", rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
