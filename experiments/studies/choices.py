"""What the choices of the deep memories do: exponents, thresholds, retention, sizes of chunks.

    python experiments/run_study.py experiments/studies/choices.py --text FOLDER --jobs 2
    miras train experiments/studies/choices.py:choice=p-3-q-4,seed=0,text=FOLDER

Byte language modelling as in experiments/studies/novels.py, for an eighth of its steps. `p-3-q-4`
is Moneta, with the bias |r|_3^3 / 3 and the retention of exponent 4. The others vary one thing of
`yaad`: `threshold-1` has a fixed threshold in the place of one that the token gives, in units of
the residual's root mean square, `anchor-zero` decays to zero, `decay-0.1` starts with a log
decay of -0.1 instead of -0.01, `chunk-4` has chunks of 4 tokens instead of 16. What is trained with
one size of chunks is then read with every other. Models are compared on every 26th stretch of 512
bytes of all held-out novels, 0.13 million bytes.
"""

import dataclasses
import itertools

from miras_jax import zoo
from miras_jax.memory import Huber, L2Decay, Lp, Lq, log_decay
from miras_jax.nn import ModelConfig
from miras_jax.training import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
)

P, Q = ("1", "1.5", "2", "3", "4"), ("2", "3", "4")
THRESHOLDS = ("0.1", "1", "10")
CHUNKS = ("1", "4", "16", "64")
CHOICES = (
    "yaad",
    *(f"p-{p}-q-{q}" for p, q in itertools.product(P, Q)),
    *(f"threshold-{size}" for size in THRESHOLDS),
    "anchor-zero",
    *("decay-0.001", "decay-0.1"),
    *(f"chunk-{size}" for size in CHUNKS if size != "16"),
)
STEPS = 400


def register(choice: str) -> str:
    """Adds the model of a choice to the zoo and returns its name."""
    kind, *values = choice.split("-")
    if kind in ("yaad", "chunk"):
        return "yaad"
    row = zoo.row("moneta" if kind == "p" else "yaad")
    if kind == "p":
        p, q = float(values[0]), float(values[2])
        changes = {"bias": Lp(p=p), "retention": Lq(q=q, decay=log_decay())}
    elif kind == "threshold":
        changes = {"bias": Huber(threshold=float(values[0]), relative=True)}
    elif kind == "decay":
        changes = {"retention": L2Decay(log_decay(initial=-float(values[0])))}
    else:
        changes = {"retention": L2Decay(anchor=values[0])}
    memory = dataclasses.replace(row.memory, **changes)
    zoo.register(dataclasses.replace(row, name=choice, memory=memory))
    return choice


def config(
    choice: str = "p-3-q-4",
    seed: str = "0",
    text: str = "data/novels",
    learning_rate: str = "3e-3",
) -> TrainConfig:
    """One model."""
    chunk = int(choice.split("-")[1]) if choice.startswith("chunk") else None
    return TrainConfig(
        model=ModelConfig(
            memory=register(choice), dim=64, depth=1, heads=1, chunk_size=chunk, remat=False
        ),
        data=DataConfig(
            source=f"{text}/train",
            validation=f"{text}/valid",
            window=512,
            batch_size=1,
            seed=int(seed),
        ),
        optimizer=OptimizerConfig(learning_rate=float(learning_rate), warmup_steps=20),
        evaluation=EvaluationConfig(every=STEPS // 2, batches=32, sample_tokens=0),
        checkpoint=CheckpointConfig(every=STEPS),
        log=LogConfig(every=4),
        steps=STEPS,
        seed=int(seed),
        directory=f"runs/choices/{choice}-{seed}",
    )


def served(choice: str, seed: str) -> dict[str, dict[str, int]]:
    """The changes of its model's configuration under which it is measured again."""
    sizes = CHUNKS if choice == "yaad" or choice.startswith("chunk") else ()
    return {"": {}, **{f"chunk-{size}": {"chunk_size": int(size)} for size in sizes}}


def tasks(choice: str, seed: str, text: str = "data/novels") -> tuple[str, ...]:
    """What is measured with each of these changes."""
    return (f"perplexity:{text}/valid,length=512,every=26,name=text",)


SEEDS = ("0", "1", "2")
RUNS = [{"choice": choice, "seed": seed} for seed, choice in itertools.product(SEEDS, CHOICES)]
