"""What must fit before a model is trained: the model, the data set and the training settings."""

from sma_core.config import ArchitectureConfig, GRUConfig, PolicyConfig
from sma_core.dataset import PreparedDataset
from sma_core.errors import ConfigError, DatasetError
from sma_core.parallel import Sharding
from sma_core.routing import policy_class
from sma_core.training_config import TrainingConfig


def check_fit(
    config: ArchitectureConfig,
    dataset: PreparedDataset,
    training: TrainingConfig,
    *,
    processes: int = 1,
    sharding: Sharding = "ddp",
) -> None:
    """Raise ConfigError or DatasetError unless the model can be trained on this data set."""
    _check_parts(config, training, processes)
    check_compile(config, training, cut=processes > 1 and sharding == "fsdp")
    card = dataset.card
    if config.inputs.numeric != len(card.numeric):
        raise ConfigError(
            f"inputs.numeric: the data set has {len(card.numeric)} numeric channels, the model "
            f"takes {config.inputs.numeric}"
        )
    vocabularies = tuple(len(channel.vocabulary) for channel in card.categorical)
    if config.inputs.categorical != vocabularies:
        raise ConfigError(
            f"inputs.categorical: the data set's vocabularies have sizes {list(vocabularies)}, the "
            f"model takes {list(config.inputs.categorical)}"
        )
    if config.head.kind != "forecast":
        if not card.classes:
            raise DatasetError(f"{dataset.folder}: {config.head.kind} needs the card's classes")
        allowed = {len(card.classes)} | ({1} if len(card.classes) == 2 else set())
        if config.head.outputs not in allowed:
            raise ConfigError(
                f"head.outputs: the data set has the {len(card.classes)} classes "
                f"{', '.join(card.classes)}; the head has {config.head.outputs} outputs"
            )
    _check_regularisers(getattr(config, "policy", None), training)


def _check_parts(config: ArchitectureConfig, training: TrainingConfig, processes: int) -> None:
    """Raise ConfigError when a norm needs the whole batch at once, and once."""
    if getattr(config, "norm", None) != "batch":
        return
    for cut, how in (
        (processes > 1, f"{processes} processes each see a part of a batch"),
        (training.accumulation_steps > 1, "accumulation_steps cuts a batch into parts"),
        (training.activation_checkpointing, "activation_checkpointing runs a layer twice"),
    ):
        if cut:
            raise ConfigError(
                f"norm: batch measures a whole batch, once; {how}: use layer or scale"
            )


def check_compile(
    config: ArchitectureConfig, training: TrainingConfig, *, cut: bool = False
) -> None:
    """Raise ConfigError when a model, or one that is `cut` into shares, makes no static graphs."""
    if training.compile == "none":
        return
    if isinstance(config, GRUConfig):
        raise ConfigError("compile: a GRU runs in kernels of its own: leave compile out")
    dispatch = getattr(config, "dispatch", "capacity")
    if dispatch != "capacity":
        raise ConfigError(
            f"compile: rows of the layout {dispatch!r} are as many as run, another number in each "
            "step; give the model dispatch = 'capacity' and a capacity above its activation rate"
        )
    if training.compile == "model" and cut:
        raise ConfigError(
            "compile: fsdp gathers weights between layers, which no graph of a whole model holds: "
            "use 'layers'"
        )


def _check_regularisers(policy: PolicyConfig | None, training: TrainingConfig) -> None:
    """Raise ConfigError when a regulariser of routing has nothing to act on."""
    weights = (
        ("target_rate", training.target_rate is not None),
        ("z_weight", training.z_weight != 0.0),
        ("entropy_weight", training.entropy_weight != 0.0),
    )
    wanted = [name for name, given in weights if given]
    if not wanted:
        return
    if policy is None or not policy_class(policy).learns:
        raise ConfigError(f"{wanted[0]}: the model has no policy that learns when to run")
    held = policy_class(policy).held_rate(policy)
    if held is not None and training.target_rate not in (None, held):
        raise ConfigError(
            f"target_rate: the policy {policy.kind!r} holds a rate of {held:g} by itself; leave "
            f"target_rate out, or give the same"
        )
