"""How to train: the settings of `fit`, each checked and named in its error."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from sma_core.errors import ConfigError

Precision = Literal["float32", "bfloat16"]
Compile = Literal["none", "layers", "model"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Parameters
    ----------
    window : int
        Longest window of a sequence that is trained on, in time steps.
    batch_size : int
        Windows of a batch, over all processes and parts.
    max_steps : int
        Optimiser steps at most.
    learning_rate : float
        Peak rate of AdamW; rises linearly over `warmup_steps`, then falls as a cosine to a tenth.
    weight_decay : float
        On the weights of linear maps; not on biases, norms, EMA parameters or embeddings.
    warmup_steps : int
        Steps of the rise.
    gradient_clip : float
        Largest norm of the gradient.
    evaluate_every, evaluate_batches : int
        Evaluate every so many steps, on so many batches of the validation split (the same ones).
    patience : int
        Stop after so many evaluations without a better one.
    seed : int
        Fixes weights, batches and dropout.
    target_rate : float, optional
        Activation rate to steer every sub-module of every layer to, in [0, 1].
    rate_weight : float
        Strength of the steering.
    z_weight : float
        Strength of the term that keeps router logits small (`z_loss`); 0: none. 1e-3 is usual.
    entropy_weight : float
        Strength of a reward for undecided routers (`routing_entropy`), which keeps them exploring;
        a negative one rewards routers that are sure. 0: none.
    positive_weight : float, optional
        Weight in the loss of every class but 0.
    checkpoint_every : int
        Save the state of the run every so many steps.
    precision : str
        ``float32``, or ``bfloat16``: matrix products of training in bfloat16, under autocast.
        Weights, sums and evaluation keep the weights' own type.
    accumulation_steps : int
        Compute a batch in so many parts, one after another, to hold less in memory. The step is
        that of the whole batch, except that with a `target_rate` each part is steered by its own
        activation rate.
    activation_checkpointing : bool
        Keep nothing inside a layer for the backward pass and compute it again there: less memory,
        about a third more work, the same numbers.
    compile : str
        What `torch.compile` makes one graph of, in training steps: ``layers``, each by itself, or
        the whole ``model``, on a GPU as CUDA graphs; ``none``. A model that routes needs the layout
        ``capacity``. Evaluation is not compiled.

    Raises
    ------
    ConfigError
        Naming the field that is out of range.
    """

    __no_type_check__ = True  # checked below, with errors that name the field

    window: int = 256
    batch_size: int = 16
    max_steps: int = 1000
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    gradient_clip: float = 1.0
    evaluate_every: int = 100
    evaluate_batches: int = 16
    patience: int = 5
    seed: int = 0
    target_rate: float | None = None
    rate_weight: float = 1.0
    z_weight: float = 0.0
    entropy_weight: float = 0.0
    positive_weight: float | None = None
    checkpoint_every: int = 100
    precision: Precision = "float32"
    accumulation_steps: int = 1
    activation_checkpointing: bool = False
    compile: Compile = "none"

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise ConfigError(
                    f"{name}: must be one of {', '.join(words)}, not {getattr(self, name)!r}"
                )
        if not isinstance(self.activation_checkpointing, bool):
            raise ConfigError(
                f"activation_checkpointing: must be true or false, not "
                f"{self.activation_checkpointing!r}"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _WORDS or field.name == "activation_checkpointing":
                continue
            optional = field.default is None
            if optional and value is None:
                continue
            whole = field.type is int
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ConfigError(f"{field.name}: must be a number, not {value!r}")
            low = 0 if field.name in _MAY_BE_ZERO else 1 if whole else math.ulp(0.0)
            low = -math.inf if field.name == "entropy_weight" else low
            high = _MOST.get(field.name, math.inf)
            if not low <= value <= high or not math.isfinite(value):
                least = "above 0" if low == math.ulp(0.0) else f"at least {low}"
                least = "finite" if low == -math.inf else least
                most = f" and at most {high}" if math.isfinite(high) else ""
                raise ConfigError(f"{field.name}: must be {least}{most}, not {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain values, for records and digests.

        Fields that came later are left out where they say what was always done, so that the digest
        of a run from before them stays what it was.
        """
        plain = asdict(self)
        for name in _LATER:
            if plain[name] == getattr(type(self), name):
                del plain[name]
        return plain


_WORDS = {"precision": get_args(Precision), "compile": get_args(Compile)}
_MOST = {"target_rate": 1, "seed": 2**32 - 1}  # of a seed, all that the CPU's generator reads
_MAY_BE_ZERO = {
    "weight_decay",
    "warmup_steps",
    "seed",
    "target_rate",
    "rate_weight",
    "z_weight",
}
# Fields added after the first runs, whose default is what those runs did.
_LATER = ("precision", "accumulation_steps", "activation_checkpointing", "compile")
