"""Language modelling of novels by the byte: nine models, what four of them are without learning
while they read, and how far beyond the length of their training they can read.

    python experiments/run_study.py experiments/studies/novels.py --text FOLDER --jobs 2
    miras train experiments/studies/novels.py:memory=yaad,window=1024,seed=0,text=FOLDER

FOLDER has the folders `train` and `valid`; it is meant for English novels of 1840 to 1920 of the
ELTeC collection (https://github.com/COST-ELTeC/ELTeC-eng), 27 of them to train and 6 to test.
All models have the parameters of Yaad, by the width of their SwiGLU, and read the same bytes in the
same order, a row of 1,024 or 512 at every step: models of this size learn more from many steps than
from long ones. Trained models then read stretches of 16,384 bytes with one memory: after rows of
1,024 four of them once more with a memory that stays as it was before the first byte; after rows of
512 all of them by position.
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
    "gated_deltanet",
    "yaad",
    "moneta",
    "memora",
    "deltanet",
    "mamba2",
    "ttt_mlp",
    "titans",
    "transformer",
)
CONTROLLED = ("gated_deltanet", "yaad", "moneta", "memora")
WINDOWS = ("1024", "512")
STEPS = 1600
SHAPE = {"dim": 64, "depth": 2, "heads": 1, "remat": False}


@functools.cache
def model(memory: str) -> ModelConfig:
    """A model with the parameters of Yaad."""
    count = sizes.parameters(ModelConfig(memory="yaad", **SHAPE))
    return sizes.equal_parameters(ModelConfig(memory=memory, **SHAPE), count, multiple=1)


def config(
    memory: str = "yaad",
    control: str = "none",
    window: str = "1024",
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
            window=int(window),
            batch_size=1,
            seed=int(seed),
        ),
        optimizer=OptimizerConfig(learning_rate=float(learning_rate), warmup_steps=40),
        evaluation=EvaluationConfig(
            every=STEPS // 4, batches=2**17 // int(window), sample_tokens=0
        ),
        checkpoint=CheckpointConfig(every=STEPS),
        log=LogConfig(every=STEPS // 20),
        steps=STEPS,
        seed=int(seed),
        directory=f"runs/novels/{memory}-{control or 'none'}-{window}-{seed}",
    )


def tasks(
    memory: str, control: str, window: str, seed: str, text: str = "data/novels"
) -> tuple[str, ...]:
    """What is measured when a model is trained."""
    path = f"perplexity:{text}/valid,length=16384"
    if control != "none":
        return ()
    if window == "1024":
        return (f"{path},limit=4,name=long",)
    # Norms are read token by token, which takes long.
    norms = seed == "0" and memory != "transformer"
    return (
        f"{path},positions,limit=16,name=long",
        *[f"{path},positions,limit=1,memory,name=norms"] * norms,
    )


def served(memory: str, control: str, window: str, seed: str) -> dict[str, dict[str, str]]:
    """The changes of its model's configuration under which it is measured."""
    frozen = memory in CONTROLLED and window == "1024"
    return {"": {}, **({"frozen": {"control": "frozen"}} if frozen else {})}


SEEDS = ("0", "1", "2")
RUNS = [
    {"memory": memory, "control": control, "window": window, "seed": seed}
    for window, seed, memory in itertools.product(WINDOWS, SEEDS, MODELS)
    for control in ("none", *["frozen"] * (memory in CONTROLLED and window == "1024"))
]
