"""A model of four choices that no row of the zoo makes, on a task that asks for memory.

    miras train experiments/new_model.py
    miras train experiments/new_model.py:control=frozen

docs/new_model.md goes through it line by line.
"""

from miras_jax import zoo
from miras_jax.memory import MLP, Gate, Huber, Lq, Memory, Momentum, log_decay
from miras_jax.nn import ModelConfig
from miras_jax.training import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
)
from miras_jax.zoo import LayerOptions, Row

memory = Memory(
    architecture=MLP(),
    bias=Huber(relative=True),
    retention=Lq(q=4.0, decay=log_decay()),
    algorithm=Momentum(step=Gate(initial=0.3), momentum=Gate(initial=0.5), normalized=True),
    chunk_size=8,
)
zoo.register(
    Row(
        name="momentum_moneta",
        memory=memory,
        layer=LayerOptions(normalize_values=True),
        architecture="MLP of 2 layers",
        bias="Huber",
        retention="lq, q = 4",
        algorithm="momentum",
        source="docs/new_model.md",
    )
)


def config(control: str = "none", pairs: str = "4") -> TrainConfig:
    """The model on multi-query recall, whole or with a broken memory."""
    return TrainConfig(
        model=ModelConfig(
            memory="momentum_moneta",
            control=None if control == "none" else control,
            vocab_size=32,
            dim=64,
            depth=2,
            heads=1,
            ff_dim=64,
            remat=False,
        ),
        data=DataConfig(
            source=f"task:mqar,pairs={pairs},vocab_size=32,random_non_queries=False",
            window=4 * int(pairs),
            batch_size=16,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=20),
        evaluation=EvaluationConfig(every=50, batches=32),
        checkpoint=CheckpointConfig(every=100),
        log=LogConfig(every=20),
        steps=300,
        directory=f"runs/new_model/{control}-{pairs}",
    )
