"""Training runs: `train(config)` takes a configuration and leaves checkpoints and metrics."""

from miras_jax.training.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    MeshConfig,
    OptimizerConfig,
    ProcessesConfig,
    StartConfig,
    TrainableConfig,
    TrainConfig,
)
from miras_jax.training.errors import (
    DivergedError,
    InputError,
    SaveError,
    StoppedError,
    UserError,
)
from miras_jax.training.loop import train

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "DivergedError",
    "EvaluationConfig",
    "InputError",
    "LogConfig",
    "MeshConfig",
    "OptimizerConfig",
    "ProcessesConfig",
    "SaveError",
    "StartConfig",
    "StoppedError",
    "TrainConfig",
    "TrainableConfig",
    "UserError",
    "train",
]
