"""Evaluators of `evaluation.tasks` during a run; training is given them and knows none."""

from collections.abc import Callable

from miras_jax.data import DataError, TrainingText, saved_vocabulary
from miras_jax.nn import LanguageModel
from miras_jax.training.config import TrainConfig
from miras_jax.training.errors import UserError

PrepareTasks = Callable[..., Callable[[LanguageModel], dict[str, float]]]


def make_tasks(
    config: TrainConfig, corpus: TrainingText, prepare_tasks: PrepareTasks | None
) -> Callable[[LanguageModel], dict[str, float]] | None:
    """Returns a function from parameters to the figures of `evaluation.tasks`, None without tasks.

    Raises:
      UserError: there is nothing to make them with, the vocabulary's library is missing, or a task
        would write over the figures of a held-out text.
    """
    if not (tasks := config.evaluation.tasks):
        return None
    if prepare_tasks is None:
        raise UserError(
            f"evaluation.tasks {tasks!r}: train(config, prepare_tasks=...) has to be told how to"
            " run them; miras train does so"
        )
    try:
        vocabulary = saved_vocabulary(corpus.vocabulary, corpus.vocabulary_folder)
    except DataError as error:
        raise UserError(f"evaluation.tasks: {error}") from error
    return prepare_tasks(
        tasks,
        vocabulary=vocabulary,
        packed=corpus.packed,
        batch_size=config.data.batch_size,
        taken=tuple(corpus.validation),
    )


def tasks_are_due(config: TrainConfig, step: int) -> bool:
    """Whether the evaluation after `step` is one with tasks."""
    every = config.evaluation.tasks_every * config.evaluation.every
    return every > 0 and step % every == 0
