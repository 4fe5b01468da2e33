"""Small data sets that the tests of training, traces and costs share."""

from pathlib import Path

import torch
from torch import Tensor

from sma_core.config import (
    GatedAttentionConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    SwiGLUConfig,
    TransformerConfig,
)
from sma_core.dataset import DatasetWriter, NumericChannel, PreparedDataset
from sma_core.training import TrainingConfig

NOISE = 0.3
SHORT = TrainingConfig(
    window=16,
    batch_size=4,
    max_steps=12,
    warmup_steps=3,
    evaluate_every=4,
    evaluate_batches=2,
    checkpoint_every=3,
)
FORECAST = HeadConfig(kind="forecast", outputs=2)


def noisy_sines(rows: int, generator: torch.Generator) -> Tensor:
    """Two channels of a sine each, plus noise that nothing predicts."""
    phase = torch.rand(2, generator=generator) * 6.28
    angle = torch.arange(rows)[:, None] * torch.tensor([0.6, 0.35]) + phase
    return angle.sin() * 1.4 + NOISE * torch.randn(rows, 2, generator=generator)


def sine_dataset(folder: Path) -> PreparedDataset:
    """Forecasting: noisy sines. Steps are classed by the first channel's sign a step before."""
    generator = torch.Generator().manual_seed(0)
    with DatasetWriter(
        folder,
        name="sines",
        numeric=[NumericChannel(name="a"), NumericChannel(name="b")],
        classes=["below", "above"],
    ) as out:
        for split, sequences in (("train", 8), ("validation", 3)):
            for _ in range(sequences):
                numeric = noisy_sines(300, generator)
                target = (numeric[:, 0] > 0).int().roll(1)
                target[0] = -1
                out.append(split, entity=0, time=torch.arange(300), numeric=numeric, target=target)
    return PreparedDataset.open(folder)


def marker_dataset(folder: Path) -> PreparedDataset:
    """Sequences of noise of 5 to 40 rows, classed by the sign of the one mark in each."""
    generator = torch.Generator().manual_seed(0)
    with DatasetWriter(
        folder,
        name="markers",
        numeric=[NumericChannel(name="noise"), NumericChannel(name="mark")],
        classes=["negative", "positive"],
    ) as out:
        for split, sequences in (("train", 256), ("validation", 64)):
            for _ in range(sequences):
                rows = int(torch.randint(5, 41, (), generator=generator))
                numeric = torch.stack(
                    [torch.randn(rows, generator=generator), torch.zeros(rows)], dim=1
                )
                place = int(torch.randint(0, rows, (), generator=generator))
                positive = int(torch.randint(0, 2, (), generator=generator))
                numeric[place, 1] = 6.0 * positive - 3.0
                out.append(
                    split,
                    entity=0,
                    time=torch.arange(rows),
                    numeric=numeric,
                    sequence_target=positive,
                )
    return PreparedDataset.open(folder)


def small_sma(head: HeadConfig = FORECAST, dropout: float = 0.0) -> ModelConfig:
    """Two layers, a pool of two, a few thousand parameters."""
    return ModelConfig(
        inputs=InputConfig(numeric=2),
        head=head,
        width=16,
        layers=2,
        states=4,
        pool=(
            GatedAttentionConfig(query_width=8, value_width=16, window=16),
            SwiGLUConfig(hidden_width=16),
        ),
        dropout=dropout,
    )


def small_transformer(head: HeadConfig = FORECAST, dropout: float = 0.0) -> TransformerConfig:
    """A Transformer of like size."""
    return TransformerConfig(
        inputs=InputConfig(numeric=2),
        head=head,
        width=16,
        layers=2,
        heads=2,
        hidden_width=32,
        window=16,
        dropout=dropout,
    )
