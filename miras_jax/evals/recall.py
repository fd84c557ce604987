"""A model on a synthetic task: accuracy beside chance, with its standard error."""

import jax

from miras_jax.nn import LanguageModel
from miras_jax.tasks import Task
from miras_jax.tasks.scoring import Tally, accuracy, answer, examples_of, together

__all__ = ["accuracy", "evaluate_task"]

_answer = jax.jit(answer)


def evaluate_task(
    model: LanguageModel,
    task: Task,
    *,
    examples: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """Lets a model answer the test examples of a task.

    Args:
      model: the model.
      task: see `miras_jax.tasks.get`.
      examples: test examples, of each test where the task has several; None takes the task's
        number.
      batch_size: examples that are read at once.
      seed: of the test examples; runs measure themselves on those of seed 0.

    Returns:
      The figures of `Tally.figures` and `chance`. Of a task with several tests, such as lengths,
      they are means over the tests, each of which has `accuracy/NAME`, `standard_error/NAME` and
      `chance/NAME`.

    Raises:
      ValueError: the model does not fit the task, or there is nothing to evaluate.
    """
    if model.config.vocab_size < task.vocab_size:
        raise ValueError(
            f"The model's vocabulary of {model.config.vocab_size} is smaller than the task's of "
            f"{task.vocab_size}."
        )
    if model.config.readout != task.readout:
        raise ValueError(
            f"The task needs a model with readout {task.readout!r}, this one has "
            f"{model.config.readout!r}."
        )
    if batch_size < 1 or (examples is not None and examples < 1):
        raise ValueError(f"Must be at least 1: {examples=}, {batch_size=}.")
    found, tests = {}, task.tests()
    for name, test in tests.items():
        tally = Tally(test)
        for batch in examples_of(test, batch_size=batch_size, examples=examples, seed=seed):
            tally.add(batch, *jax.device_get(_answer(model, batch["tokens"], batch["targets"])))
        found[name] = tally.figures()
    chance = sum(test.chance for test in tests.values()) / len(tests)
    figures = together(found) | {"chance": chance}
    if len(tests) > 1:
        figures |= {f"chance/{name}": test.chance for name, test in tests.items()}
    return figures
