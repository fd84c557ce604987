"""Recall by model width and number of pairs: MQAR, the accuracy of nine models.

    python experiments/run_study.py experiments/studies/mqar.py --jobs 2
    miras train experiments/studies/mqar.py:memory=yaad,dim=64,pairs=4,seed=0

The task of Zoology (arXiv 2312.04927) made small enough for two processor cores: 32 token ids
instead of 8,192, rows of four tokens a pair (the pairs, then a question and its answer for each),
two blocks of one memory. Memories whose chunks count take 8 tokens a chunk. Test examples are 1,024
and the same for all runs. Models of one width have the parameters of its Titans with a SwiGLU of
twice the width, by the width of theirs; every run reads the same number of tokens, 256 a step, at
the same learning rate. At one width and number of pairs the models of the paper and Gated DeltaNet
also run with a frozen memory, which is what they can do without learning while they read.
"""

import dataclasses
import functools
import itertools

from miras_jax import zoo
from miras_jax.memory import Memory
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
STEPS = 800
CHUNK = 8


@functools.cache
def model(memory: str, dim: int) -> ModelConfig:
    """A model with the parameters of the Titans of its width."""
    shape = {"vocab_size": 32, "dim": dim, "depth": 2, "heads": 1, "remat": False}
    count = sizes.parameters(ModelConfig(memory="titans", ff_dim=2 * dim, **shape))
    mixer = zoo.get(memory)
    chunk = CHUNK if isinstance(mixer, Memory) and not mixer.exact else None
    config = ModelConfig(memory=memory, chunk_size=chunk, **shape)
    return sizes.equal_parameters(config, count, multiple=1)


def config(
    memory: str = "yaad",
    dim: str = "64",
    pairs: str = "4",
    control: str = "none",
    seed: str = "0",
    learning_rate: str = "5e-3",
) -> TrainConfig:
    """One model at one width and number of pairs."""
    control = None if control == "none" else control
    return TrainConfig(
        model=dataclasses.replace(model(memory, int(dim)), control=control),
        data=DataConfig(
            source=(
                f"task:mqar,pairs={pairs},vocab_size=32,random_non_queries=False,test_examples=1024"
            ),
            window=4 * int(pairs),
            batch_size=64 // int(pairs),
            seed=int(seed),
        ),
        optimizer=OptimizerConfig(learning_rate=float(learning_rate), warmup_steps=30),
        evaluation=EvaluationConfig(every=STEPS // 5, batches=None),
        checkpoint=CheckpointConfig(every=STEPS),
        log=LogConfig(every=STEPS // 5),
        steps=STEPS,
        seed=int(seed),
        directory=f"runs/mqar/{memory}-{dim}-{pairs}-{control or 'none'}-{seed}",
    )


SEEDS = ("0", "1", "2")
SETTINGS = (("4", "64"), ("8", "64"), ("4", "32"))  # pairs, width
RUNS = [
    {"memory": memory, "dim": dim, "pairs": pairs, "control": control, "seed": seed}
    for seed, (pairs, dim), memory in itertools.product(SEEDS, SETTINGS, MODELS)
    for control in ("none", *["frozen"] * (memory in CONTROLLED and (pairs, dim) == SETTINGS[0]))
]
