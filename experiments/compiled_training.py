"""Training through `fit`, compiled and not: seconds of a step, and until the first.

``python -m experiments.compiled_training`` trains 6 layers of width 512 on noise, in windows of
8,192 steps. A clock runs the sub-modules, so that each way does the same work.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from sma_core import DatasetWriter, NumericChannel, PreparedDataset, TrainingConfig, fit
from sma_core.bench.sizes import LayerSizes
from sma_core.config import (
    ArchitectureConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    PeriodicConfig,
    TransformerConfig,
)

CHANNELS = 8


def noise(folder: Path, rows: int) -> PreparedDataset:
    """Write sequences of noise."""
    generator = torch.Generator().manual_seed(0)
    channels = [NumericChannel(name=f"c{i}") for i in range(CHANNELS)]
    with DatasetWriter(folder, name="noise", numeric=channels) as out:
        for split, length in (("train", rows), ("validation", rows // 8)):
            numeric = torch.randn(length, CHANNELS, generator=generator)
            out.append(split, entity=0, time=torch.arange(length), numeric=numeric)
    return PreparedDataset.open(folder)


def models(width: int, layers: int, stride: int) -> dict[str, ArchitectureConfig]:
    """Ours in both layouts, and the Transformer."""
    around = {
        "inputs": InputConfig(numeric=CHANNELS),
        "head": HeadConfig(kind="forecast", outputs=CHANNELS),
        "width": width,
        "layers": layers,
    }
    sizes = LayerSizes(width=width, query_width=width // 4, value_width=2 * width)
    packed = ModelConfig(**around, **sizes.fields(policy=PeriodicConfig(stride=stride)))
    return {
        "packed": packed,
        "capacity": replace(packed, dispatch="capacity", capacity=1 / stride),
        "transformer": TransformerConfig(
            **around, heads=max(1, width // 64), hidden_width=4 * width, window=sizes.window
        ),
    }


def main() -> None:
    """Train each model each way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--models", default="packed,capacity,transformer")
    parser.add_argument("--compile", default="none,layers,model")
    options = parser.parse_args()
    training = TrainingConfig(
        window=options.window,
        batch_size=options.batch,
        max_steps=options.steps,
        evaluate_every=options.steps,
        evaluate_batches=1,
        checkpoint_every=options.steps,
        precision="bfloat16",
    )
    print("| model | compile | step, ms | ± IQR | tokens/s | first step, s |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Whole batches: a shorter one would be filled up, or be less work.
        data = noise(folder / "data", 4 * options.batch * options.window + 1)
        known = models(options.width, options.layers, options.stride)
        for label in options.models.split(","):
            for how in ["none"] if label == "packed" else options.compile.split(","):
                times = [time.perf_counter()]
                fit(
                    known[label],
                    data,
                    replace(training, compile=how),
                    folder / f"{label}-{how}",
                    device=options.device,
                    on_progress=lambda _, times=times: times.append(time.perf_counter()),
                )
                # The last step evaluates and saves; the first ones compile and record.
                each = [1000 * (b - a) for a, b in itertools.pairwise(times[5:-1])]
                low, step, high = statistics.quantiles(each, n=4)
                rate = options.batch * options.window / step * 1000
                first = times[1] - times[0]
                cells = (f"{step:.1f}", f"{high - low:.1f}", f"{rate:,.0f}", f"{first:.1f}")
                print(f"| {' | '.join((label, how, *cells))} |", flush=True)


if __name__ == "__main__":
    main()
