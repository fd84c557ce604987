"""Grades, on answers of which the score is known."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from miras_jax import tasks
from miras_jax.evals.recall import accuracy, evaluate_task
from miras_jax.tasks.scoring import Tally, examples_of


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Copier:
    """Says the token that it reads, with this much certainty in nats over each other one."""

    vocab_size: int
    sure: float
    readout: str = "token"

    @property
    def config(self):
        return types.SimpleNamespace(vocab_size=self.vocab_size, readout=self.readout)

    def __call__(self, tokens):
        return self.sure * jax.nn.one_hot(tokens, self.vocab_size), None


def test_accuracy_of_answers_and_of_logits():
    targets, mask = np.array([[1, 2, 3], [0, 1, 1]]), np.array([[1, 1, 0], [0, 0, 1.0]])
    answers = np.array([[1, 0, 3], [0, 1, 1]])
    assert accuracy(answers, targets, mask) == pytest.approx(2 / 3)
    assert accuracy(jnp.eye(4)[answers], targets, mask) == pytest.approx(2 / 3)


def test_an_exact_copy_and_a_uniform_model():
    task = tasks.get("mad_compression", length=8, vocab_size=6)
    perfect = evaluate_task(Copier(6, 50.0, "last"), task, examples=10, batch_size=4)
    assert perfect["accuracy"] == perfect["exact_match"] == perfect["macro_accuracy"] == 1
    assert perfect["standard_error"] == 0
    assert perfect["loss"] < 1e-6
    assert perfect["count"] == 10
    assert perfect["chance"] == task.chance
    uniform = evaluate_task(Copier(7, 0.0, "last"), task, examples=10)
    assert uniform["loss"] == pytest.approx(math.log(7), rel=1e-6)


def test_standard_error_is_the_spread_of_the_score():
    """Of a model that repeats the token: right at the first, and at one in two after that."""
    task = tasks.get("parity", length=64)
    scores = [
        evaluate_task(Copier(2, 1.0), task, examples=50, batch_size=50, seed=seed)
        for seed in range(40)
    ]
    found = np.array([score["accuracy"] for score in scores])
    error = np.mean([score["standard_error"] for score in scores])
    # The deviation of 40 scores is known to 1 / sqrt(80) = 11 %.
    assert found.std(ddof=1) == pytest.approx(error, rel=0.4)
    assert abs(found.mean() - (0.5 + 0.5 / 64)) < 4 * error / math.sqrt(40)


def test_figures_by_group_and_by_whole_example():
    task = tasks.get("passkey", length=600)
    batch = task.batch(0, 0, 8, "test")
    predictions = batch["targets"].copy()
    at = batch["mask"].argmax(axis=1)
    predictions[0, at[0] + 3] = 0  # one digit of one example
    batch["mask"][7] = 0  # fills up a batch
    tally = Tally(task)
    tally.add(batch, predictions, np.ones(predictions.shape))
    found = tally.figures()
    assert found["accuracy"] == found["exact_match"] == pytest.approx(6 / 7)
    assert found["target_accuracy"] == pytest.approx(55 / 56)
    assert found["standard_error"] == pytest.approx(math.sqrt(6 / 7 / 7 / 7))
    assert found["count"] == 7
    assert found["loss"] == 1
    groups = batch["groups"][:7, 0]
    for i in {*groups.tolist()}:
        mine = groups == i
        expected = 1 - (mine[0] / mine.sum())
        assert found[f"accuracy/{task.groups[i]}"] == pytest.approx(expected)


def test_groups_of_targets():
    task = tasks.get("forgetting", pairs=4, updates=1, length=64)
    batch = task.batch(0, 0, 5)
    predictions = np.where(batch["groups"] == 1, -1, batch["targets"])
    tally = Tally(task)
    tally.add(batch, predictions, np.zeros(predictions.shape))
    found = tally.figures()
    assert (found["accuracy/kept"], found["accuracy/updated"]) == (1, 0)
    assert found["accuracy"] == 0.75
    assert found["exact_match"] == 0


def test_macro_accuracy_counts_every_answer_alike():
    task = tasks.get("parity", length=4)
    tally = Tally(task)
    batch = {
        "targets": np.array([[0, 0, 0, 1]]),
        "mask": np.ones((1, 4)),
        "groups": np.zeros((1, 4), int),
    }
    tally.add(batch, np.array([[0, 0, 0, 0]]), np.zeros((1, 4)))
    found = tally.figures()
    assert (found["accuracy"], found["macro_accuracy"]) == (0.75, 0.5)


def test_several_lengths_are_told_apart():
    task = tasks.get("parity", length=8, test_lengths=(8, 16))
    found = evaluate_task(Copier(2, 1.0), task, examples=20)
    by_length = [found["accuracy/length_8"], found["accuracy/length_16"]]
    assert found["accuracy"] == pytest.approx(np.mean(by_length))
    alone = evaluate_task(Copier(2, 1.0), tasks.get("parity", length=16), examples=20)
    assert by_length[1] == alone["accuracy"]
    errors = [found["standard_error/length_8"], found["standard_error/length_16"]]
    assert found["standard_error"] == pytest.approx(sum(errors) / 2)
    assert found["chance/length_16"] == 0.5
    assert found["count"] == 40


def test_the_last_batch_is_filled_up():
    batches = [*examples_of(tasks.get("parity"), batch_size=4, examples=6)]
    assert [int((batch["mask"].sum(axis=1) > 0).sum()) for batch in batches] == [4, 2]
    assert len(batches[1]["tokens"]) == 4


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 5 is smaller than the task's of 6"):
        evaluate_task(Copier(5, 1.0), tasks.get("s3"))
    with pytest.raises(ValueError, match="readout 'last', this one has 'token'"):
        evaluate_task(Copier(16, 1.0), tasks.get("mad_compression"))
    with pytest.raises(ValueError, match="at least 1: examples=0"):
        evaluate_task(Copier(6, 1.0), tasks.get("s3"), examples=0)
