"""kill -9 at random moments, the same command again until it is done: as if nothing had been."""

import os
import pathlib
import random
import re

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from miras_jax.data import load_text, train_iterator
from miras_jax.training.ledger import Ledger
from miras_jax.training.metrics import read_records
from miras_jax.training.state import abstract_state, make_mesh
from tests.training.kills import PHASES
from tests.training.toy import records

EXPERIMENT = """
import pathlib
from miras_jax.training import CheckpointConfig, EvaluationConfig
from tests.training.toy import toy
config = toy(
    pathlib.Path({folder!r}),
    steps={steps},
    checkpoint=CheckpointConfig(every=3, keep=3),
    evaluation=EvaluationConfig(every=10, batches=1, sample_tokens=0),
)
"""


@pytest.mark.parametrize(
    ("kills", "steps", "soonest"), [(5, 70, 7), pytest.param(60, 600, 1, marks=pytest.mark.nightly)]
)
def test_killed_and_restarted_equals_uninterrupted(forks, tmp_path, kills, steps, soonest):
    seed = int(os.environ.get("MIRAS_KILL_SEED") or random.randrange(2**32))
    print(f"MIRAS_KILL_SEED={seed}")
    random.seed(seed)
    (tmp_path / "whole").mkdir()
    whole, expected = experiment(tmp_path / "whole", steps)
    assert forks.miras("train", whole).code == 0
    assert_every_window_in_turn(expected)

    (tmp_path / "killed").mkdir()
    killed, config = experiment(tmp_path / "killed", steps)
    starts = []
    for number in range(kills):
        # Each phase in turn. From the seventh step on a checkpoint more is complete; after the
        # twelfth of every process all kills come before the end.
        phase = list(PHASES)[number % len(PHASES)]
        count = random.randint(2, 4) if phase == "save" else random.randint(soonest, 12)
        delay = random.uniform(0, {"start": 0.8, "save": 0.3}.get(phase, 0.005))
        options = {"phase": phase, "count": count, "delay": delay}
        ended = forks.miras("train", killed, before="tests.training.kills:kill", options=options)
        assert ended.code == -9, (seed, options, ended)
        starts += re.findall(r"continuing after step (\d+)", ended.out)
    ended = forks.miras("train", killed)
    assert ended.code == 0, (seed, ended)
    assert "damaged" not in ended.out

    print("continued after steps", *starts)
    assert starts == sorted(starts, key=int)
    assert len(set(starts)) > 1  # it was not always killed before it got anywhere
    assert records(config) == records(expected)
    for x, y in zip(state(config, steps), state(expected, steps), strict=True):
        np.testing.assert_array_equal(x, y)


def experiment(folder: pathlib.Path, steps: int):
    """Writes an experiment to `folder`; returns its path, and its configuration."""
    path = folder / "experiment.py"
    path.write_text(EXPERIMENT.format(folder=str(folder), steps=steps))
    names = {}
    exec(path.read_text(), names)
    return str(path), names["config"]


def assert_every_window_in_turn(config) -> None:
    """The records of all steps tell the windows that the data has at their place."""
    data = config.data
    batches = train_iterator(
        load_text(data.source).parts,
        window=data.window,
        batch_size=data.batch_size,
        seed=data.seed,
    )
    ledger = Ledger()
    found = read_records(pathlib.Path(config.directory, "metrics.jsonl"))
    trained = [record for record in found if "train/loss" in record]
    assert len(trained) == config.steps
    for record in trained:
        expected = ledger.enter(next(batches)["index"])
        assert expected.items() <= record.items()


def state(config, step: int) -> list[np.ndarray]:
    """All arrays of a checkpoint, those of the optimizer too."""
    path = pathlib.Path(config.directory, "checkpoints", str(step))
    abstract = abstract_state(config, make_mesh(config.mesh))
    found = ocp.load_checkpointables(path, {"state": abstract})["state"]
    return [np.asarray(x) for x in jax.tree.leaves(found)]
