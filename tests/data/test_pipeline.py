"""The pipeline: every window once an epoch, exact resumption, the same stream on any processes."""

import itertools
import json

import numpy as np
import pytest

from miras_jax.data import train_iterator, validation_batches

WINDOW, BATCH = 8, 4
# 23 windows, no multiple of the batch, and a tail of 5 tokens that fills no window.
TOKENS = np.arange(23 * WINDOW + 1 + 5, dtype=np.uint16)


def stream(seed: int = 0, **options):
    return train_iterator(TOKENS, window=WINDOW, batch_size=BATCH, seed=seed, **options)


def indices(batches, count: int) -> list[list[int]]:
    return [batch["index"].tolist() for batch in itertools.islice(batches, count)]


def test_batches_hold_the_windows_they_name() -> None:
    for batch in itertools.islice(stream(), 6):
        assert batch["tokens"].shape == (BATCH, WINDOW + 1)
        assert batch["tokens"].dtype == np.int32
        assert batch["index"].dtype == np.int64
        starts = batch["index"][:, None] * WINDOW
        np.testing.assert_array_equal(batch["tokens"], starts + np.arange(WINDOW + 1))


def test_every_window_once_an_epoch_in_a_new_order() -> None:
    order = np.concatenate(indices(stream(), 23))
    epochs = order.reshape(4, 23)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(23), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seed_decides_the_order() -> None:
    assert indices(stream(seed=1), 10) == indices(stream(seed=1), 10)
    assert indices(stream(seed=1), 10) != indices(stream(seed=2), 10)


def test_a_batch_of_one_row_follows_the_same_order() -> None:
    options = {"window": WINDOW, "batch_size": 1, "seed": 0}
    flat = np.concatenate(indices(stream(), 3))
    assert np.concatenate(indices(train_iterator(TOKENS, **options), 12)).tolist() == flat.tolist()
    parts = [(TOKENS, 2.0), (TOKENS, 1.0)]
    order = np.concatenate(indices(train_iterator(parts, **options), 60))
    assert np.sum(order < 23) == 40


@pytest.mark.parametrize("step", [0, 1, 7])
def test_resumes_exactly(step: int) -> None:
    expected = indices(stream(), 12)
    first = stream()
    assert indices(first, step) == expected[:step]
    state = json.loads(json.dumps(first.get_state()))
    assert list(state.values()) == [step * BATCH]
    for resumed in (stream(), first):
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert indices(resumed, 12 - step) == expected[step:]


def test_processes_read_their_rows_of_one_stream() -> None:
    """Any rows, also the same on both; each knows the windows of the whole batch."""
    whole = [dict(batch) for batch in itertools.islice(stream(), 10)]
    shares = ([0, 1, 3], [3, 2])
    parts = [stream(rows=rows) for rows in shares]
    for expected in whole[:5]:
        for rows, part in zip(shares, parts, strict=True):
            batch = next(part)
            np.testing.assert_array_equal(batch["index"], expected["index"])
            np.testing.assert_array_equal(batch["tokens"], expected["tokens"][rows])
    assert parts[0].get_state() == parts[1].get_state()
    alone = stream()
    alone.set_state(parts[0].get_state())
    assert indices(alone, 5) == [batch["index"].tolist() for batch in whole[5:]]


def test_training_errors() -> None:
    with pytest.raises(ValueError, match="the text has 8 tokens, one window of 8 needs 9"):
        train_iterator(TOKENS[:8], window=8, batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"rows must name some of the 4 rows .*, got \[3, 4\]"):
        stream(rows=[3, 4])
    with pytest.raises(ValueError, match="window must be 1 or more, got 0"):
        train_iterator(TOKENS, window=0, batch_size=1, seed=0)


@pytest.mark.parametrize("size", [2, WINDOW + 1, 4 * WINDOW, 4 * WINDOW + 1, 4 * WINDOW + 2, 190])
def test_validation_targets_each_token_once(size: int) -> None:
    targets = []
    for batch in validation_batches(TOKENS[:size], window=WINDOW, batch_size=BATCH):
        assert batch["tokens"].shape == (BATCH, WINDOW + 1)
        assert batch["tokens"].dtype == np.int32
        assert batch["mask"].shape == (BATCH, WINDOW)
        assert batch["mask"].dtype == np.float32
        used = batch["mask"] == 1
        inputs, labels = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        np.testing.assert_array_equal(labels[used], inputs[used] + 1)
        assert not labels[~used].any()
        targets += labels[used].tolist()
    assert targets == list(range(1, size))


def test_validation_limit() -> None:
    every = list(validation_batches(TOKENS, window=WINDOW, batch_size=BATCH))
    some = list(validation_batches(TOKENS, window=WINDOW, batch_size=BATCH, limit=2))
    assert len(every) == 6
    assert len(some) == 2
    assert all(batch["mask"].all() for batch in some)
    np.testing.assert_array_equal(some[1]["tokens"], every[1]["tokens"])


def test_validation_errors_come_at_the_call() -> None:
    with pytest.raises(ValueError, match="has 1 tokens, it needs 2"):
        validation_batches(TOKENS[:1], window=WINDOW, batch_size=BATCH)
    with pytest.raises(ValueError, match="limit=0"):
        validation_batches(TOKENS, window=WINDOW, batch_size=BATCH, limit=0)
