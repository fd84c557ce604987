"""A run that is small enough to be trained many times: what the tests of this folder share."""

import dataclasses
import pathlib
import shutil

import numpy as np

from miras_jax.nn import ModelConfig
from miras_jax.training import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
)
from miras_jax.training.metrics import Record, read_records

MODEL = ModelConfig(memory="deltanet", dim=16, depth=1, heads=2, chunk_size=8)


def write_text(path: pathlib.Path) -> pathlib.Path:
    """Writes 20 kB of words in a random order."""
    words = np.array("the memory learns what it reads and forgets what it must".split())
    path.write_text(" ".join(np.random.default_rng(0).choice(words, 4000)))
    return path


def toy(folder: pathlib.Path, **changes) -> TrainConfig:
    """A run of six steps in `folder` / run on the text in `folder`, with fields replaced."""
    source = folder / "text.txt"
    if not source.exists():
        write_text(source)
    config = TrainConfig(
        model=MODEL,
        data=DataConfig(source=str(source), window=16, batch_size=8),
        optimizer=OptimizerConfig(warmup_steps=2),
        evaluation=EvaluationConfig(every=3, batches=2, sample_tokens=0),
        checkpoint=CheckpointConfig(every=2, keep=10),
        log=LogConfig(every=1),
        steps=6,
        directory=str(folder / "run"),
    )
    return dataclasses.replace(config, **changes)


def cut_short(config: TrainConfig, folder: pathlib.Path) -> TrainConfig:
    """A copy of a finished toy, in `folder`, as it stood after step 2."""
    copy = dataclasses.replace(config, directory=str(folder))
    shutil.copytree(config.directory, copy.directory)
    for step in (4, 6):
        shutil.rmtree(folder / "checkpoints" / str(step))
    return copy


def records(config: TrainConfig) -> list[Record]:
    """The metrics of a run, without those that depend on the clock."""
    kept = read_records(pathlib.Path(config.directory) / "metrics.jsonl")
    return [
        {name: value for name, value in record.items() if not name.startswith("throughput/")}
        for record in kept
    ]
