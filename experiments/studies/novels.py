"""Language modelling of novels by the byte: nine models, what four of them are without learning
while they read, and how far beyond the length of their training they can read.

    python experiments/run_study.py experiments/studies/novels.py --text FOLDER --jobs 2
    miras train experiments/studies/novels.py:memory=yaad,seed=0,text=FOLDER

FOLDER has the folders `train` and `valid`; it is meant for English novels of 1840 to 1920 of the
ELTeC collection (https://github.com/COST-ELTeC/ELTeC-eng), 27 of them to train and 6 to test.
Models are compared on every 13th stretch of 512 bytes of all six, 0.26 million bytes; the curves
along training are of the first 131,072 bytes of one.
All models have one block and the parameters of Yaad, by the width of their SwiGLU, and read the
same bytes in the same order, a row of 512 at every step. With one block all that a model knows
beyond the last four bytes, which its convolutions see, comes through its memory. Without learning
while it reads, a matrix holds nothing, but a deep memory is still a network of two layers. Trained
models then read every 13th stretch of 16,384 bytes with one memory, and the same stretches with one
that begins afresh after 512 bytes; four of them read all once more with a memory that stays as it
was before the first byte.
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
STEPS = 3200
WINDOW = 512


@functools.cache
def model(memory: str) -> ModelConfig:
    """A model with the parameters of Yaad."""
    shape = {"dim": 64, "depth": 1, "heads": 1, "remat": False}
    count = sizes.parameters(ModelConfig(memory="yaad", **shape))
    return sizes.equal_parameters(ModelConfig(memory=memory, **shape), count, multiple=1)


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
            window=WINDOW,
            batch_size=1,
            seed=int(seed),
        ),
        optimizer=OptimizerConfig(learning_rate=float(learning_rate), warmup_steps=40),
        evaluation=EvaluationConfig(every=STEPS // 4, batches=2**17 // WINDOW, sample_tokens=0),
        checkpoint=CheckpointConfig(every=STEPS),
        log=LogConfig(every=STEPS // 20),
        steps=STEPS,
        seed=int(seed),
        directory=f"runs/novels/{memory}-{control or 'none'}-{seed}",
    )


def tasks(memory: str, control: str, seed: str, text: str = "data/novels") -> tuple[str, ...]:
    """What is measured when a model is trained."""
    path = f"perplexity:{text}/valid"
    rows = f"{path},length={WINDOW},every=13,name=text"
    if control != "none":
        return (rows,)
    long = f"{path},length=16384,positions"
    # Norms are read token by token, which takes long.
    norms = seed == "0" and memory != "transformer"
    return (
        rows,
        f"{long},every=13,name=long",
        f"{long},every=13,mode=rolling,window={WINDOW},name=afresh",
        *[f"{long},limit=1,memory,name=norms"] * norms,
    )


def served(memory: str, control: str, seed: str) -> dict[str, dict[str, str]]:
    """The changes of its model's configuration under which it is measured."""
    frozen = control == "none" and memory in CONTROLLED
    return {"": {}, **({"frozen": {"control": "frozen"}} if frozen else {})}


SEEDS = ("0", "1", "2")
RUNS = [
    {"memory": memory, "control": control, "seed": seed}
    for seed, memory in itertools.product(SEEDS, MODELS)
    for control in ("none", *["frozen"] * (memory in CONTROLLED))
]
