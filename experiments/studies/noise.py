"""Recall where some values are written wrong: do robust attentional biases help?

    python experiments/run_study.py experiments/studies/noise.py --jobs 2
    miras train experiments/studies/noise.py:bias=huber,noise=0.25,seed=0

Four pairs are written four times; a share of the values written is replaced by others, and the true
values are asked for. The model is one block; its memory is Yaad's in all but its bias, with chunks
of 8 tokens, and Gated DeltaNet stands beside it. A model is trained without wrong values or with a
quarter of them, and each is tested with five shares. A reader who takes the most frequent value is
the oracle.
"""

import dataclasses
import functools
import itertools

from miras_jax import zoo
from miras_jax.memory import L1, L2, Huber, Lp, Robust
from miras_jax.nn import ModelConfig, sizes
from miras_jax.training import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
)

BIASES = {
    "l2": L2(),
    "huber": Huber(relative=True),
    "huber-coordinate": Huber(kind="coordinate"),
    "l1": L1(),
    "l3": Lp(p=3.0),
    "robust": Robust(),
}
MODELS = (*BIASES, "gated_deltanet")
TRAINED = ("0", "0.25")
TESTED = ("0", "0.125", "0.25", "0.375", "0.5")
TASK = "corrupted,pairs=4,passes=4,length=40,vocab_size=32"
STEPS = 600


@functools.cache
def model(bias: str) -> ModelConfig:
    """Yaad with another bias, or a model of the zoo, with the parameters of Yaad."""
    yaad = zoo.row("yaad")
    name = bias
    if bias in BIASES:
        name = f"bias-{bias}"
        memory = dataclasses.replace(yaad.memory, bias=BIASES[bias])
        zoo.register(dataclasses.replace(yaad, name=name, memory=memory))
    shape = {"vocab_size": 32, "dim": 64, "depth": 1, "heads": 1, "remat": False}
    count = sizes.parameters(ModelConfig(memory="yaad", **shape))
    chunk = 8 if bias in BIASES else None
    config = ModelConfig(memory=name, chunk_size=chunk, **shape)
    return sizes.equal_parameters(config, count, multiple=1)


def config(
    bias: str = "huber", noise: str = "0.25", seed: str = "0", learning_rate: str = "5e-3"
) -> TrainConfig:
    """One model."""
    return TrainConfig(
        model=model(bias),
        data=DataConfig(
            source=f"task:{TASK},noise={noise},test_examples=1024",
            window=40,
            batch_size=16,
            seed=int(seed),
        ),
        optimizer=OptimizerConfig(learning_rate=float(learning_rate), warmup_steps=30),
        evaluation=EvaluationConfig(every=STEPS // 4, batches=None),
        checkpoint=CheckpointConfig(every=STEPS),
        log=LogConfig(every=STEPS // 4),
        steps=STEPS,
        seed=int(seed),
        directory=f"runs/noise/{bias}-{noise}-{seed}",
    )


def tasks(bias: str, noise: str, seed: str) -> tuple[str, ...]:
    """What is measured when a model is trained."""
    task = "task:" + TASK.replace(",", ":")
    return tuple(f"{task}:noise={share},limit=1024,name=noise_{share}" for share in TESTED)


SEEDS = ("0", "1", "2")
RUNS = [
    {"bias": bias, "noise": noise, "seed": seed}
    for seed, noise, bias in itertools.product(SEEDS, TRAINED, MODELS)
]
