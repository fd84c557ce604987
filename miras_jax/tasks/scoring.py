"""Grades what a model answers: accuracy, loss and their spread, whole and by group."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from miras_jax.tasks.task import Arrays, Task


def accuracy(predictions: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> float:
    """Share of the graded targets that are right.

    Args:
      predictions: int `[..., T]`, or logits float `[..., T, vocabulary]`, of which the largest
        counts.
      targets: int `[..., T]`.
      mask: `[..., T]`, 1 where the target is graded, else 0.
    """
    predictions = np.asarray(predictions)
    if predictions.ndim > np.ndim(targets):
        predictions = predictions.argmax(axis=-1)
    return float(np.average(predictions == targets, weights=mask))


def answer(model, tokens: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lets a model read rows; to be compiled.

    Args:
      model: `model(tokens [B, T])` gives logits `[B, T, vocabulary]` first.
      tokens: int32 `[B, T + 1]`.
      targets: int32 `[B, T]`.

    Returns:
      Its likeliest answers int32 `[B, T]`, and the cross-entropies in nats float32 `[B, T]`.
    """
    logits = model(tokens[:, :-1])[0].astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), losses


def examples_of(task: Task, *, batch_size: int, examples: int | None = None, seed: int = 0):
    """Yields the first test examples, `task.test_examples` by default, in batches of one size; the
    mask is 0 in the rows that fill up the last one."""
    examples = task.test_examples if examples is None else examples
    for start in range(0, examples, batch_size):
        batch = task.batch(seed, start, batch_size, "test")
        batch["mask"][examples - start :] = 0
        yield batch


class Tally:
    """Adds up the answers to a task, batch by batch; rows without a graded target do not count."""

    def __init__(self, task: Task):
        self.task = task
        self._rows: list[np.ndarray] = []  # right, graded, nats of every example
        self._groups = np.zeros((2, max(len(task.groups), 1)))
        self._classes = np.zeros((2, task.vocab_size))

    def add(self, batch: Arrays, predictions: np.ndarray, losses: np.ndarray) -> None:
        """Grades a batch as `Task.batch` makes it, with what `answer` gave."""
        targets, mask = np.asarray(batch["targets"]), np.asarray(batch["mask"], float)
        right = mask * (np.asarray(predictions) == targets)
        rows = np.stack([right.sum(1), mask.sum(1), (mask * np.asarray(losses)).sum(1)])
        asked = rows[1] > 0
        self._rows.append(rows[:, asked])
        for sums, weights in zip(self._classes, (right, mask), strict=True):
            sums += np.bincount(targets.ravel(), weights.ravel(), self.task.vocab_size)
        groups = np.asarray(batch["groups"])
        if self.task.grade == "example":  # an example is of the group of its first target
            first = mask.argmax(1)[asked]
            groups = np.take_along_axis(groups[asked], first[:, None], 1)[:, 0]
            right, mask = rows[0, asked] == rows[1, asked], np.ones(asked.sum())
        for sums, weights in zip(self._groups, (right, mask), strict=True):
            sums += np.bincount(groups.ravel(), weights.ravel(), self._groups.shape[1])

    def figures(self) -> dict[str, float]:
        """What was reached.

        Returns:
          `accuracy` (of targets or of whole examples, as `Task.grade` says), `standard_error` of it
          with the examples as units, `loss` (nats per graded target), `target_accuracy`,
          `exact_match` (share of examples of which all targets are right), `macro_accuracy` (mean
          over the targets' tokens, as MAD reports it), `count` (examples), and `accuracy/GROUP` of
          each group that has any.
        """
        right, graded, nats = np.concatenate(self._rows, axis=1)
        whole = right == graded
        units, sizes = (whole, np.ones_like(graded))
        if self.task.grade == "target":
            units, sizes = right, graded
        reached = units.sum() / sizes.sum()
        # Of a ratio of sums: examples may have different numbers of targets.
        spread = np.sqrt(np.sum((units - reached * sizes) ** 2)) / sizes.sum()
        known = self._classes[1] > 0
        found = {
            "accuracy": reached,
            "standard_error": spread,
            "loss": nats.sum() / graded.sum(),
            "target_accuracy": right.sum() / graded.sum(),
            "exact_match": whole.mean(),
            "macro_accuracy": np.mean(self._classes[0, known] / self._classes[1, known]),
            "count": len(right),
        }
        for name, good, total in zip(self.task.groups, *self._groups, strict=False):
            if total:
                found[f"accuracy/{name}"] = good / total
        return {name: float(value) for name, value in found.items()}


def together(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures of a task's tests by name as one: those of the only test, or the means over the
    tests, with `accuracy/NAME` and `standard_error/NAME` of each. The standard error of the means
    is the mean of the standard errors, an upper bound: rows of several lengths share their pairs,
    so that the tests are not independent."""
    if len(figures) == 1:
        return next(iter(figures.values()))
    whole = [name for name in next(iter(figures.values())) if "/" not in name]
    found = {name: float(np.mean([test[name] for test in figures.values()])) for name in whole}
    found["count"] = sum(test["count"] for test in figures.values())
    for kind in ("accuracy", "standard_error"):
        found |= {f"{kind}/{name}": test[kind] for name, test in figures.items()}
    return found
