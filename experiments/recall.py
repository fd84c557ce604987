"""Recall of four pairs of a key and a value, by two layers of the delta rule.

    miras train experiments/recall.py

36 CPU-seconds on two cores for an accuracy of 0.99 (seed 0), 0.91 after 50 steps; chance is 0.25.
Any model of the zoo does it with `--model.memory NAME`, any task of docs/tasks.md with
`--data.source task:NAME`.
"""

from miras_jax.nn import ModelConfig
from miras_jax.training import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
)

config = TrainConfig(
    model=ModelConfig(
        memory="deltanet", vocab_size=32, dim=64, depth=2, heads=2, ff_dim=64, remat=False
    ),
    data=DataConfig(source="task:mqar,pairs=4,vocab_size=32", window=32, batch_size=128),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
    evaluation=EvaluationConfig(every=50, batches=8),
    checkpoint=CheckpointConfig(every=100),
    log=LogConfig(every=20),
    steps=150,
    directory="runs/recall",
)
