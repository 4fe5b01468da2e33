"""The prepared data set: one folder, a JSON card and one safetensors file per split.

It is the only thing that passes between whoever prepares data and whoever trains or replays, and
torch and safetensors are enough to read it. See `card` for the layout.
"""

from .batching import Batch, WindowSampler, batches
from .card import CategoricalChannel, DatasetCard, NumericChannel, SplitCard
from .reader import PreparedDataset, Rows, SequenceRef, Split
from .writer import DatasetWriter

__all__ = [
    "Batch",
    "CategoricalChannel",
    "DatasetCard",
    "DatasetWriter",
    "NumericChannel",
    "PreparedDataset",
    "Rows",
    "SequenceRef",
    "Split",
    "SplitCard",
    "WindowSampler",
    "batches",
]
