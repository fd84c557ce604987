"""Far beyond the length of training: nine models trained on rows of 512 bytes of novels.

    python experiments/run_study.py experiments/studies/extrapolation.py --text FOLDER --jobs 2
    miras train experiments/studies/extrapolation.py:memory=yaad,seed=0,text=FOLDER

The text is that of experiments/studies/novels.py. All models have the parameters of Yaad, by the
width of their SwiGLU, and read the same bytes in the same order. The trained models then read
stretches of 16,384 bytes, of 32 times the length that they were trained on, with one memory from
the first byte to the last. Four of them were also trained with a memory that never changes.
"""

import dataclasses
import functools
import itertools

from miras_jax.nn import ModelConfig, sizes
from miras_jax.training import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
)

MODELS = (
    "deltanet",
    "gated_deltanet",
    "mamba2",
    "ttt_mlp",
    "titans",
    "moneta",
    "yaad",
    "memora",
    "transformer",
)
CONTROLLED = ("gated_deltanet", "yaad", "moneta", "memora")
STEPS = 300
SHAPE = {"dim": 128, "depth": 2, "heads": 4, "remat": False}


@functools.cache
def model(memory: str) -> ModelConfig:
    """A model with the parameters of Yaad."""
    count = sizes.parameters(ModelConfig(memory="yaad", **SHAPE))
    return sizes.equal_parameters(ModelConfig(memory=memory, **SHAPE), count, multiple=1)


def config(
    memory: str = "yaad",
    control: str = "none",
    seed: str = "0",
    text: str = "data/novels",
    learning_rate: str = "3e-3",
) -> TrainConfig:
    """One model."""
    control = None if control == "none" else control
    return TrainConfig(
        model=dataclasses.replace(model(memory), control=control),
        data=DataConfig(
            source=f"{text}/train",
            validation=f"{text}/valid",
            window=512,
            batch_size=4,
            seed=int(seed),
        ),
        optimizer=OptimizerConfig(learning_rate=float(learning_rate), warmup_steps=40),
        evaluation=EvaluationConfig(every=STEPS // 4, batches=32, sample_tokens=0),
        checkpoint=CheckpointConfig(every=STEPS),
        log=LogConfig(every=STEPS // 16),
        steps=STEPS,
        seed=int(seed),
        directory=f"runs/extrapolation/{memory}-{control or 'none'}-{seed}",
    )


def tasks(memory: str, control: str, seed: str, text: str = "data/novels") -> tuple[str, ...]:
    """What is measured when a model is trained."""
    if control != "none":
        return ()
    path = f"perplexity:{text}/valid,length=16384,positions"
    # Norms are read token by token, which takes long.
    norms = (
        (f"{path},limit=1,memory,name=norms",) if seed == "0" and memory != "transformer" else ()
    )
    return (f"{path},limit=16,name=long", *norms)


SEEDS = ("0", "1", "2")
RUNS = [
    {"memory": memory, "control": control, "seed": seed}
    for seed, memory in itertools.product(SEEDS, MODELS)
    for control in ("none", *["frozen"] * (memory in CONTROLLED))
]
