"""Sparse Modular Activation on stock PyTorch.

Build a model from a configuration, run it over whole sequences, in chunks with a state, or one
step at a time:

    model = build_model(ModelConfig(inputs=InputConfig(numeric=3), head=...))
"""

from sma_core.config import (
    AlwaysConfig,
    ArchitectureConfig,
    GatedAttentionConfig,
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
from sma_core.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    ShapeError,
    SMAError,
    StreamingError,
)
from sma_core.model import (
    Inputs,
    Outputs,
    SequenceModel,
    SMAModel,
    State,
    build_model,
    register_architecture,
)
from sma_core.routing import Policy, RoutingDecision, register_policy
from sma_core.submodules import RowwiseSubModule, SubModule, register_submodule

__all__ = [
    "AlwaysConfig",
    "ArchitectureConfig",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "GatedAttentionConfig",
    "HeadConfig",
    "InputConfig",
    "Inputs",
    "ModelConfig",
    "NeverConfig",
    "Outputs",
    "PeriodicConfig",
    "Policy",
    "PolicyConfig",
    "RandomConfig",
    "RoutingDecision",
    "RowwiseSubModule",
    "SMAError",
    "SMAModel",
    "SequenceModel",
    "ShapeError",
    "State",
    "StreamingError",
    "SubModule",
    "SubModuleConfig",
    "SwiGLUConfig",
    "TemperedSoftmaxConfig",
    "TransformerConfig",
    "build_model",
    "config_from_dict",
    "config_to_dict",
    "register_architecture",
    "register_policy",
    "register_submodule",
]
