"""MAD's six tasks: hand-made rows, and what the recipes say of drawn ones."""

import numpy as np
import pytest

from miras_jax import tasks
from miras_jax.tasks.mad import value_map


def answers(task, row):
    return task.oracle(np.array(row)).tolist()


def test_in_context_recall_by_hand():
    task = tasks.get("mad_in_context", length=10, vocab_size=8)
    row = [0, 4, 1, 5, 0, 4, 2, 5, 1, 5, 0]
    assert answers(task, row) == [0, 0, 0, 0, 4, 0, 0, 0, 5, 0]


def test_noisy_recall_by_hand():
    task = tasks.get("mad_noisy", length=10, vocab_size=10, noise_tokens=2)
    row = [0, 4, 8, 9, 0, 4, 8, 8, 0, 4, 0]  # keys 0..3, values 4..7, noise 8 and 9
    assert answers(task, row) == [0, 0, 0, 0, 4, 0, 0, 0, 4, 0]


def test_fuzzy_recall_by_hand():
    task = tasks.get(
        "mad_fuzzy", length=16, vocab_size=8, key_tokens=2, value_tokens=2
    )  # keys of 0..2, values of 3..6, 7 fills up
    row = [7, 7, 0, 1, 3, 4, 1, 0, 5, 2, 1, 6, 3, 0, 1, 3, 4]
    assert answers(task, row) == [0] * 14 + [3, 4]


def test_selective_copying_by_hand():
    task = tasks.get("mad_selective_copying", length=8, vocab_size=5, copied=2)
    assert answers(task, [3, 3, 1, 3, 2, 4, 3, 3, 0]) == [0] * 6 + [1, 2]


def test_compression_by_hand():
    task = tasks.get("mad_compression", length=4, vocab_size=5)
    assert answers(task, [1, 0, 3, 4, 0]) == [1, 0, 3, 4]


def test_memorization_by_hand():
    task = tasks.get("mad_memorization", length=4, vocab_size=8)
    first, second = value_map(8, task.map_seed)[[2, 0]]
    assert answers(task, [2, 7, 0, 7, 7]) == [0, first, 0, second]


@pytest.mark.parametrize("name", ["mad_in_context", "mad_noisy"])
def test_recall_rows(name):
    task = tasks.get(name)
    half, meaning = task.meaning // 2, task.meaning
    noisy = []
    for index in range(40):
        row = task.sample(0, index, "test")
        slots = row["tokens"][:-1].reshape(-1, 2)
        seen = {}
        for slot, (key, value) in enumerate(slots.tolist()):
            is_noise = key >= meaning
            graded = [*row["mask"][2 * slot : 2 * slot + 2]]
            assert graded == [float(not is_noise and key in seen), 0]
            if is_noise:
                assert value >= meaning
            else:
                assert key < half <= value < meaning
                assert seen.setdefault(key, value) == value
        noisy.append(slots[:, 0] >= meaning)
        assert row["mask"][-2] == 1  # the last pair repeats a key
        train = task.sample(0, index)
        assert train["mask"].tolist() == [1] * (task.length - 1) + [0]
        np.testing.assert_array_equal(train["targets"], train["tokens"][1:])
    share = np.mean(noisy)  # one slot that is kept a pair, and the last, of 64
    expected = task.noise * 62 / 64
    assert abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / (40 * 64))


def test_noise_everywhere_leaves_a_pair():
    task = tasks.get("mad_noisy", noise=0.999, length=8)
    for index in range(50):
        keys = task.sample(0, index)["tokens"][:-1:2]
        assert (keys < task.meaning).sum() >= 2


def runs(tokens, half):
    """Splits a row without what fills it up into pairs of a key and a value."""
    pairs = []
    for token in tokens:
        if token < half:
            if not pairs or pairs[-1][1]:
                pairs.append(((), ()))
            key, value = pairs[-1]
            pairs[-1] = ((*key, token), value)
        else:
            key, value = pairs[-1]
            pairs[-1] = (key, (*value, token))
    return pairs


@pytest.mark.parametrize("split", ["train", "test"])
def test_fuzzy_rows(split):
    task = tasks.get("mad_fuzzy")
    sizes = set()
    for index in range(60):
        row = task.sample(0, index, split)
        tokens = row["tokens"].tolist()
        start = tokens.count(15)
        assert tokens[:start] == [15] * start  # on the left, and nowhere else
        assert 1 < start < 2 * 6  # two of the longest pairs at most
        pairs = runs(tokens[start:], task.half)
        assert all(len({*key}) == len(key) <= 3 for key, _ in pairs)
        assert all(len({*value}) == len(value) <= 3 for _, value in pairs)
        sizes |= {(len(key), len(value)) for key, value in pairs}
        value_of, graded = {}, [0.0] * start
        for key, value in pairs:
            graded += [0.0] * len(key) + [float(key in value_of)] * len(value)
            assert value_of.setdefault(key, value) == value
        assert pairs[-1] in pairs[:-1]
        if split == "test":
            assert row["mask"].tolist() == graded[1:]
        else:
            assert row["mask"].all()
    keys = (3,) if split == "test" else (1, 2, 3)
    assert sizes == {(key, value) for key in keys for value in (1, 2, 3)}


def test_copying_rows():
    task = tasks.get("mad_selective_copying", length=64)
    first, last = [], []
    for index in range(100):
        row = task.sample(0, index)
        tokens = row["tokens"][:64]
        symbols = np.flatnonzero(tokens < 14)
        assert len(symbols) == 16
        assert symbols[-1] == 46  # no blank after the last one
        assert tokens[47] == 15
        assert (tokens[48:] == 14).all()
        assert np.flatnonzero(row["mask"]).tolist() == [*range(48, 64)]
        assert row["targets"][48:].tolist() == tokens[symbols].tolist()
        first.append(symbols[0])
        last.append(symbols[15] - symbols[14] - 1)
    expected = 31 / 16  # blanks before each symbol
    for gaps in (first, last):
        assert abs(np.mean(gaps) - expected) < 4 * np.sqrt(expected / 100)


def test_compression_rows():
    task = tasks.get("mad_compression")
    batch = task.batch(0, 0, 50)
    assert (batch["tokens"][:, 31] == 15).all()
    assert batch["tokens"][:, :31].max() == 14
    np.testing.assert_array_equal(batch["targets"], batch["tokens"][:, :32])
    assert batch["mask"].all()


def test_memorization_is_one_map_of_which_training_shows_a_part():
    values = value_map(8192, 12345)
    assert len(values) == 4095
    assert len({*values}) == 4095
    assert 4095 <= values.min() <= values.max() <= 8190
    assert (value_map(8192, 1) != values).any()
    task = tasks.get("mad_memorization", vocab_size=8192)
    batch = task.batch(0, 0, task.examples)
    assert batch["tokens"].shape == (256, 33)
    assert (batch["tokens"][:, 1:32:2] == 8191).all()
    assert (batch["mask"] == [0, 1] * 16).all()
    keys = batch["tokens"][:, :-1:2]
    np.testing.assert_array_equal(batch["targets"][:, 1::2], values[keys])
    # 1 - (1 - 1 / 4095)^4096 = 63.2 % of the keys; its deviation over draws is 0.5 %.
    assert abs(len(np.unique(keys)) / 4095 - 0.632) < 0.02
