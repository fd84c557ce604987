"""Quick start: a Yaad language model on the text of the Python standard library.

    miras train experiments/quickstart.py

Runs on a laptop: four emulated CPU devices (weights over fsdp 2, heads over tensor 2), bytes as
tokens, half a million of them. Running it again resumes, or says that it is done.
"""

from miras_jax.nn import ModelConfig
from miras_jax.training import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)

config = TrainConfig(
    model=ModelConfig(memory="yaad", dim=128, depth=2, heads=4, remat=False),
    data=DataConfig(source="stdlib", window=256, batch_size=4),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50),
    mesh=MeshConfig(fsdp=2, tensor=2, devices=4),
    evaluation=EvaluationConfig(every=100, batches=32),
    checkpoint=CheckpointConfig(every=100),
    log=LogConfig(diagnostics_every=100),
    steps=500,
    directory="runs/quickstart",
)
