"""`SMABlock` under `torch.compile`, as a program of its own: shape checks do not trace.

``python -m tests.core.compiled LAYOUT BACKEND [DTYPE]`` exits with 0 when the compiled block equals
the eager one, in float32 or under autocast to bfloat16. In the layout ``capacity`` it must be one
graph, compiled once for any activation.
"""

import sys
import warnings
from typing import Any

import torch
from tests.core.models import POOL
from tests.tolerances import assert_close
from torch._dynamo.utils import counters

from sma_core import ActiveEMAConfig, FullAttentionConfig, LocalConvolutionConfig, SMABlock

WIDTH, STEPS = 8, 70
EVERY_KIND = (
    *POOL[1:],
    LocalConvolutionConfig(kernel_size=3),
    FullAttentionConfig(heads=2, head_width=4, max_rows=8),
    ActiveEMAConfig(states=2),
)


def main(layout: str, backend: str, row: str = "float32") -> None:
    """Compare at activations from none to all."""
    torch.manual_seed(0)
    # Generating and building C++ takes long: the real backend compiles less, and no backward.
    training = backend == "aot_eager"
    static = layout == "capacity"
    if static:
        warnings.simplefilter("error")
        # What the tracer of torch 2.11 does with any autograd function.
        warnings.filterwarnings("ignore", message=".*should not be instantiated", append=False)
    pool: tuple[Any, ...] = EVERY_KIND if static and training else POOL[:1]
    block = SMABlock(WIDTH, pool=pool, states=2, dispatch=layout, capacity=0.4)
    compiled = torch.compile(block, fullgraph=static, backend=backend)
    valid = torch.arange(STEPS) < torch.tensor([[STEPS], [40]])
    dropped = []
    with torch._dynamo.config.patch(error_on_recompile=static), torch.set_grad_enabled(training):
        # Between them logits in bfloat16 fall to either side, as each form rounds at its places.
        between = [0.0] if row == "float32" else []
        for bias in (-10.0, *between, 10.0) if static else (0.0, 10.0):
            with torch.no_grad():
                block.layer.project.bias[1 : 2 * len(pool) : 2] = bias
            x = torch.randn(2, STEPS, WIDTH, requires_grad=training)
            results = []
            for run in (compiled, block):
                with torch.autocast("cpu", torch.bfloat16, enabled=row == "bfloat16"):
                    out = run(x, valid)
                gradient = torch.autograd.grad(out.square().sum(), x)[0] if training else x
                assert block.decision is not None
                results.append((out, gradient, block.decision))
            ours, eager = results
            assert ours[2].active.equal(eager[2].active)
            assert_close(ours[0], eager[0], row)
            assert_close(ours[1], eager[1], row)
            dropped.append(ours[2].dropped)
    if static:
        assert not counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == 1
        counts = [int(mask.sum()) for mask in dropped]
        # 28 slots of 70 steps: of the 70 and 40 valid ones, 42 and 12 find none when all run.
        assert counts[0] == 0
        assert counts[-1] == len(pool) * (42 + 12)
    print("fine")


if __name__ == "__main__":
    main(*sys.argv[1:])
