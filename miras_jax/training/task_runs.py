"""Runs on synthetic tasks: `data.source="task:mqar,pairs=16"` in the place of a text."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from miras_jax import tasks
from miras_jax.data import TrainingText
from miras_jax.data.rows import Rows
from miras_jax.nn import LanguageModel
from miras_jax.nn.partition import BATCH
from miras_jax.tasks.scoring import Tally, answer, examples_of, together
from miras_jax.training.batches import local_rows, put
from miras_jax.training.config import TrainConfig
from miras_jax.training.errors import UserError

ENDLESS = 2**31 - 1  # rows of a task that draws new examples for ever
READ = ("tokens", "targets", "mask")


class TaskRows(Rows):
    """The training examples of a task, drawn when they are asked for."""

    def __init__(self, task: tasks.Task, seed: int):
        self.task = task
        self._seed = seed

    def __len__(self) -> int:
        return self.task.examples or ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        sample = self.task.sample(self._seed, index)
        return {name: sample[name] for name in READ}


@dataclasses.dataclass(frozen=True)
class TaskText(TrainingText):
    """What a run on a task reads; it has no held-out text, but tests.

    Attributes:
      task: the task.
    """

    task: tasks.Task


def names_task(source: str | tuple[str, ...]) -> bool:
    """Whether a data source is a task, or has one among others."""
    return any(map(tasks.is_task, [source] if isinstance(source, str) else source))


def read_task(config: TrainConfig) -> TaskText:
    """Makes the task that `config.data.source` names; its rows are as long as the window where it
    says nothing of their length.

    Raises:
      UserError: there is no such task, or it does not fit the window or the model.
    """
    data, model = config.data, config.model
    if not isinstance(data.source, str):
        raise UserError(f"data.source {data.source!r}: a task must be the only source")
    if data.validation is not None:
        raise UserError(
            f"data.validation {data.validation!r}: a task has test examples of its own; leave it"
            " out"
        )
    try:
        task = tasks.parse(data.source, length=data.window)
    except (ValueError, OSError) as error:
        raise UserError(f"data.source {data.source!r}: {error}") from error
    if task.length != data.window:
        raise UserError(
            f"data.window {data.window} must be {task.length}, the length of the rows of"
            f" {data.source}"
        )
    if model.vocab_size < task.vocab_size:
        raise UserError(
            f"model.vocab_size {model.vocab_size} is less than the task's {task.vocab_size}"
        )
    if model.readout != task.readout:
        raise UserError(f"model.readout must be {task.readout!r} for {data.source}")
    described: dict[str, Any] = task.describe()
    sha256 = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return TaskText(
        parts=((TaskRows(task, data.seed), 1.0),),
        validation={},
        vocabulary=task.vocabulary,
        vocabulary_folder=None,
        name=data.source,
        description=f"{data.source}, chance {task.chance:.3g}",
        sha256=sha256,
        version=sha256[:12],
        task=task,
    )


def make_task_evaluation(
    config: TrainConfig, task: tasks.Task, mesh: Mesh
) -> Callable[[LanguageModel], dict[str, float]]:
    """Returns a function from parameters to `eval/loss` (nats per graded target), `eval/accuracy`
    and `eval/accuracy/NAME` of each group, or of each test where there are several.

    The test examples are those of seed 0 whatever the run's, so that runs can be compared.
    """
    rows = NamedSharding(mesh, PartitionSpec(BATCH))
    read = jax.jit(answer, out_shardings=NamedSharding(mesh, PartitionSpec()))
    size, limit = config.data.batch_size, config.evaluation.batches
    here = local_rows(rows, size)

    def score(params: LanguageModel, test: tasks.Task) -> dict[str, float]:
        tally = Tally(test)
        examples = min(test.test_examples, size * limit) if limit else test.test_examples
        for batch in examples_of(test, batch_size=size, examples=examples):
            mine = {name: batch[name][here] for name in ("tokens", "targets")}
            tally.add(batch, *jax.device_get(read(params, **put(mine, rows, size, here))))
        return tally.figures()

    def evaluate(params: LanguageModel) -> dict[str, float]:
        found = together({name: score(params, test) for name, test in task.tests().items()})
        return {
            f"eval/{name}": value
            for name, value in found.items()
            if name == "loss" or name.partition("/")[0] == "accuracy"
        }

    return evaluate
