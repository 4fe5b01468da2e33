"""Seconds until a fresh process has trained its first step, eager or compiled on a cold cache.

A program of its own, which `layer` starts: ``python -m sma_core.bench.first_step JSON``.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from sma_core.bench.sizes import LayerSizes

GOALS = {"eager": 5.0, "compiled": 60.0}


def measure_first_step(
    sizes: LayerSizes, *, tokens: int, length: int, device: torch.device, compiles: bool
) -> dict[str, float]:
    """Start a process with empty compiler caches, and wait for its first step.

    Returns
    -------
    dict
        ``import_s``, from the start of the process to the end of the import, and ``first_s``, from
        there to the end of the step.

    Raises
    ------
    RuntimeError
        The process failed.
    """
    task = {
        "sizes": sizes.as_json(),
        "batch": max(1, tokens // length),
        "length": length,
        "device": str(device),
        "compiles": compiles,
        "started": time.time(),  # two processes share no other clock
    }
    with tempfile.TemporaryDirectory() as folder:
        caches = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
        done = subprocess.run(  # noqa: S603  (this module, by this Python)
            [sys.executable, "-m", "sma_core.bench.first_step", json.dumps(task)],
            env=os.environ | {name: f"{folder}/{name}" for name in caches},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(task: dict[str, Any]) -> None:
    """Build a layer, train one step, print the seconds."""
    import_s, begin = time.time() - task["started"], time.perf_counter()
    device = torch.device(task["device"])
    sizes = LayerSizes(**task["sizes"])
    compiles = task["compiles"]
    # A share that no routing fills to the last slot and no length rounds to nothing.
    fields = {"dispatch": "capacity", "capacity": 0.25} if compiles else {}
    block: Any = sizes.block(**fields).to(device)
    if compiles:
        block = torch.compile(block, mode="reduce-overhead", fullgraph=True)
    shape = (task["batch"], task["length"], sizes.width)
    x = torch.randn(shape, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        y = block(x)
    # A loss, as training has one: to check a given gradient, torch imports SymPy for seconds.
    y.square().mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    print(json.dumps({"import_s": import_s, "first_s": time.perf_counter() - begin}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
