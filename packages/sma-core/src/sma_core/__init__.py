"""Sparse Modular Activation on stock PyTorch.

Build a model from a configuration, run it over whole sequences, in chunks with a state, or one
step at a time:

    model = build_model(ModelConfig(inputs=InputConfig(numeric=3), head=...))
"""

from sma_core.baselines import TransformerModel, dense_twin
from sma_core.block import SMABlock
from sma_core.captured import CapturedStep
from sma_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sma_core.config import (
    AlwaysConfig,
    ArchitectureConfig,
    GatedAttentionConfig,
    GRUConfig,
    HeadConfig,
    InputConfig,
    ModelConfig,
    NeverConfig,
    PeriodicConfig,
    PolicyConfig,
    RandomConfig,
    SubModuleConfig,
    SwiGLUConfig,
    TemperedSoftmaxConfig,
    TransformerConfig,
    config_from_dict,
    config_to_dict,
)
from sma_core.dataset import (
    Batch,
    CategoricalChannel,
    DatasetWriter,
    NumericChannel,
    PreparedDataset,
)
from sma_core.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    DivergenceError,
    ExportError,
    FleetError,
    ShapeError,
    SMAError,
    StreamingError,
    TrainingError,
)
from sma_core.explain import Attribution, Occlusion, attribution, occlusion
from sma_core.fleet import Fleet
from sma_core.model import (
    Inputs,
    Outputs,
    SequenceModel,
    SMAModel,
    State,
    build_model,
    register_architecture,
)
from sma_core.policy_configs import (
    BudgetConfig,
    GumbelConfig,
    SigmoidConfig,
    TemperatureConfig,
    TopKConfig,
)
from sma_core.recurrent import GRUModel
from sma_core.routing import Policy, RouterInputs, RoutingDecision, register_policy
from sma_core.routing.statistics import RoutingStatistics
from sma_core.submodule_configs import (
    ActiveEMAConfig,
    FullAttentionConfig,
    LocalConvolutionConfig,
)
from sma_core.submodules import RowwiseSubModule, SubModule, register_submodule
from sma_core.trace import DecisionIndex, RoutingTrace, routing_trace
from sma_core.training import FitResult, Progress, TrainingConfig, fit

__all__ = [
    "ActiveEMAConfig",
    "AlwaysConfig",
    "ArchitectureConfig",
    "Attribution",
    "Batch",
    "BudgetConfig",
    "CapturedStep",
    "CategoricalChannel",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DatasetWriter",
    "DecisionIndex",
    "DivergenceError",
    "ExportError",
    "FitResult",
    "Fleet",
    "FleetError",
    "FullAttentionConfig",
    "GRUConfig",
    "GRUModel",
    "GatedAttentionConfig",
    "GumbelConfig",
    "HeadConfig",
    "InputConfig",
    "Inputs",
    "LocalConvolutionConfig",
    "ModelConfig",
    "NeverConfig",
    "NumericChannel",
    "Occlusion",
    "Outputs",
    "PeriodicConfig",
    "Policy",
    "PolicyConfig",
    "PreparedDataset",
    "Progress",
    "RandomConfig",
    "RouterInputs",
    "RoutingDecision",
    "RoutingStatistics",
    "RoutingTrace",
    "RowwiseSubModule",
    "SMABlock",
    "SMAError",
    "SMAModel",
    "SequenceModel",
    "ShapeError",
    "SigmoidConfig",
    "State",
    "StreamingError",
    "SubModule",
    "SubModuleConfig",
    "SwiGLUConfig",
    "TemperatureConfig",
    "TemperedSoftmaxConfig",
    "TopKConfig",
    "TrainingConfig",
    "TrainingError",
    "TransformerConfig",
    "TransformerModel",
    "attribution",
    "build_model",
    "config_from_dict",
    "config_to_dict",
    "dense_twin",
    "fit",
    "load_checkpoint",
    "occlusion",
    "register_architecture",
    "register_policy",
    "register_submodule",
    "routing_trace",
    "save_checkpoint",
]
