"""A batch that gives NaN: it stops the run, or is left out, and its windows are named."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from miras_jax.data import load_text, train_iterator
from miras_jax.training import DivergedError, loop, train
from miras_jax.training.checkpoint import load_model
from miras_jax.training.optimizer import learning_rate, make_optimizer
from miras_jax.training.state import abstract_state, init_state, make_mesh, shardings_of
from miras_jax.training.step import train_step
from tests.training.toy import records, toy

BROKEN = 1_000_000  # an id that is in no vocabulary, as a damaged file holds: its embedding is NaN


def batches_of(config):
    data = config.data
    parts = load_text(data.source).parts
    return train_iterator(parts, window=data.window, batch_size=data.batch_size, seed=data.seed)


@pytest.fixture
def broken(monkeypatch):
    """Puts one broken token into the batches of some steps, wherever the run begins."""

    def at(*steps: int):
        original = loop.train_iterator

        class Broken:
            def __init__(self, *arguments, **options):
                self.inner, self.rows = original(*arguments, **options), options["batch_size"]

            def __next__(self):
                batch = next(self.inner)
                if self.inner.get_state()["global_next_index"] // self.rows in steps:
                    batch = {**batch, "tokens": batch["tokens"].copy()}
                    batch["tokens"][3, 5] = BROKEN
                return batch

            def __getattr__(self, name):
                return getattr(self.inner, name)

        monkeypatch.setattr(loop, "train_iterator", Broken)

    return at


def skipping(folder, **changes):
    return toy(folder, on_nonfinite="skip", max_skipped=2, **changes)


def windows(config, step: int) -> list[int]:
    """The windows of a step's batch."""
    batches = batches_of(config)
    return [next(batches)["index"].tolist() for _ in range(step)][-1]


def test_a_broken_token_makes_the_loss_nan(tmp_path, broken):
    """And stops the run, if it is not told otherwise."""
    config = toy(tmp_path)
    broken(4)
    named = ", ".join(map(str, windows(config, 4)))
    said = rf"step 4: train/loss is not finite .*train/loss nan.* batch: {named}; last .*/2$"
    with pytest.raises(DivergedError, match=said):
        train(config)


def test_a_skipped_batch_changes_nothing(tmp_path, broken, capsys):
    """The weights are those of the same steps without that batch, bit for bit."""
    config = skipping(tmp_path)
    broken(3)
    train(config)
    named = windows(config, 3)
    log = records(config)
    (skipped,) = [record for record in log if "skipped/reason" in record]
    assert skipped["step"] == 3
    assert skipped["skipped/reason"] == "train/loss is nan"
    assert skipped["skipped/windows"] == named
    said = [line for line in capsys.readouterr().out.splitlines() if "batch skipped" in line]
    assert said == [
        "step 3: train/loss is nan: batch skipped, 1 in a row of 2 at most; its windows: "
        + ", ".join(map(str, named))
    ]
    trained = [record for record in log if "train/loss" in record]
    assert [record["step"] for record in trained] == [1, 2, 4, 5, 6]
    assert [record["train/skipped"] for record in trained] == [0, 0, 1, 1, 1]

    with jax.set_mesh(make_mesh(config.mesh)):
        state, rates = by_hand(config, leave_out=3)
    assert int(state.step) == 5  # updates
    # The learning rate goes by updates: the fourth step, the third update, has that of step 3.
    np.testing.assert_array_equal([record["train/learning_rate"] for record in trained], rates)
    found = jax.tree.leaves(load_model(config.directory)[0])
    for x, y in zip(found, jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(x, y)


def by_hand(config, leave_out: int):
    """The same updates in the same compiled step with no loop; one batch is not even looked at."""
    abstract = abstract_state(config, make_mesh(config.mesh))
    shardings = shardings_of(abstract)
    advance = jax.jit(
        functools.partial(
            train_step,
            optimizer=make_optimizer(config),
            schedule=learning_rate(config),
            shardings=shardings.params,
            skip_nonfinite=True,
        ),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    state, rates, batches = init_state(config, abstract), [], batches_of(config)
    for step in range(1, config.steps + 1):
        batch = next(batches)
        if step != leave_out:
            state, metrics = advance(state, {"tokens": batch["tokens"]})
            rates.append(float(metrics["train/learning_rate"]))
    return state, rates


def test_too_many_in_a_row_stop_it_also_through_a_restart(tmp_path, broken):
    config = skipping(tmp_path, steps=8)
    broken(2, 4, 5, 6)  # 2 does not count: 3 was good
    said = r"step 6: .* after 2 batches skipped in a row; windows .*last good checkpoint: .*/4$"
    with pytest.raises(DivergedError, match=said):
        train(config)
    before = records(config)
    with pytest.raises(DivergedError, match=said):  # the count is kept beside the checkpoint
        train(config)
    assert records(config) == before
    train(dataclasses.replace(config, max_skipped=3))
    assert sorted(p.name for p in pathlib.Path(config.directory, "checkpoints").iterdir()) == [
        *"2468"
    ]
