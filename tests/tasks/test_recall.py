"""MQAR and its variants against their recipes, read off the rows token by token."""

import numpy as np
import pytest

from miras_jax import tasks
from miras_jax.tasks.recall import draw_slots


def pairs_of(tokens, count):
    return tokens[: 2 * count].reshape(-1, 2)


@pytest.mark.parametrize("passes", [1, 3])
def test_mqar_row(passes):
    task = tasks.get("mqar", pairs=6, length=64, vocab_size=128, passes=passes)
    for index in range(30):
        row = task.sample(0, index)
        tokens, targets, mask = row["tokens"], row["targets"], row["mask"]
        written = 12 * passes
        pairs = pairs_of(tokens, 6)
        np.testing.assert_array_equal(tokens[:written], np.tile(pairs.ravel(), passes))
        keys, values = pairs.T
        assert len({*keys}) == len({*values}) == 6
        assert 1 <= keys.min() <= keys.max() <= 63
        assert 64 <= values.min() <= values.max() <= 127
        at = np.flatnonzero(mask)
        assert len(at) == 6
        assert at.min() >= written
        assert not (at % 2).any()  # the first token of a slot
        assert {*tokens[at]} == {*keys}
        value_of = dict(pairs.tolist())
        assert [value_of[key] for key in tokens[at].tolist()] == targets[at].tolist()
        # The last time that the value was written.
        place = {value: 2 * i + 1 + 12 * (passes - 1) for i, value in enumerate(values.tolist())}
        back = at - [place[value] for value in targets[at].tolist()]
        edges = [name.rpartition("_")[2].split("-") for name in task.groups]
        for distance, group in zip(back, row["groups"][at], strict=True):
            low, high = map(int, edges[group])
            assert low <= distance <= high


def test_mqar_fills_with_zeros_or_at_random():
    plain = tasks.get("mqar", pairs=4, length=64, vocab_size=32, random_non_queries=False)
    batch = plain.batch(0, 0, 50)
    rest = batch["tokens"][:, 8:64]
    assert ((rest != 0).sum(axis=1) == 4).all()  # the queries alone: no answer is shown
    filled = tasks.get("mqar", pairs=4, length=64, vocab_size=32).batch(0, 0, 50)
    rest = filled["tokens"][:, 8:64][filled["mask"][:, 8:] == 0]
    counts = np.bincount(rest, minlength=32)
    assert counts.min() > 0.5 * rest.size / 32  # 81 expected of each


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_slots_are_drawn_by_their_weights(power):
    random, slots, count = np.random.default_rng(0), 12, 6000
    weights = np.arange(1, slots + 1) ** (power - 1)
    weights /= weights.sum()
    pairs = np.array([draw_slots(random, slots, 2, power) for _ in range(count)])
    assert (pairs[:, 0] != pairs[:, 1]).all()
    # The second draw is among those that the first left.
    second = [
        sum(weights[i] * weights[j] / (1 - weights[i]) for i in range(slots) if i != j)
        for j in range(slots)
    ]
    for column, expected in ((0, weights), (1, np.array(second))):
        found = np.bincount(pairs[:, column], minlength=slots) / count
        error = np.sqrt(expected * (1 - expected) / count)
        assert (abs(found - expected) < 4.5 * error).all()


def test_mqar_mix_trains_on_parts_and_tests_beyond_them():
    task = tasks.get("mqar_mix")
    batch = task.batch(0, 0, 300)
    counts = batch["mask"].sum(axis=1).astype(int)
    assert {*counts} == {4, 8, 16, 32, 64}
    share = np.mean(counts == 4)
    assert abs(share - 100 / 180) < 4 * np.sqrt(100 / 180 * 80 / 180 / 300)
    short = batch["tokens"][counts == 4]
    assert not short[:, 64:].any()
    assert {name: (t.pairs, t.length) for name, t in task.tests().items()} == {
        "pairs_4_length_64": (4, 64),
        "pairs_8_length_64": (8, 64),
        "pairs_16_length_64": (16, 64),
        "pairs_32_length_128": (32, 128),
        "pairs_64_length_256": (64, 256),
        "pairs_128_length_512": (128, 512),
        "pairs_256_length_1024": (256, 1024),
    }
    assert {*tasks.get("mqar_mix", pairs=8).batch(0, 0, 50)["mask"].sum(axis=1)} == {4, 8}


def test_extrapolation_keeps_everything_but_the_length():
    task = tasks.get("mqar", pairs=4, length=32, test_lengths=(32, 128))
    assert task.sample(0, 0)["tokens"].size == 33
    assert {name: t.length for name, t in task.tests().items()} == {
        "length_32": 32,
        "length_128": 128,
    }
    assert all(test.pairs == 4 for test in task.tests().values())


def test_forgetting_asks_for_the_latest_value():
    task = tasks.get("forgetting", pairs=6, updates=4, length=64, vocab_size=16)
    for index in range(50):
        row = task.sample(0, index)
        written = pairs_of(row["tokens"], 10).tolist()
        first, second = dict(written[:6]), dict(written[6:])
        assert len(second) == 4
        assert second.keys() <= first.keys()
        assert all(first[key] != value for key, value in second.items())
        at = np.flatnonzero(row["mask"])
        latest = {**first, **second}
        for place in at:
            key = int(row["tokens"][place])
            assert row["targets"][place] == latest[key]
            assert task.groups[row["groups"][place]] == ("updated" if key in second else "kept")


def test_composition_needs_both_keys():
    task = tasks.get("compositional", pairs=9, length=64, vocab_size=64)
    for index in range(30):
        row = task.sample(0, index)
        first, second, values = row["tokens"][:27].reshape(-1, 3).T
        assert len({*first}) == len({*second}) == 3
        assert len({*values}) == 9
        assert first.max() <= 21 < second.min()
        assert second.max() <= 42 < values.min()
        value_of = {(a, b): v for a, b, v in zip(first, second, values, strict=True)}
        at = np.flatnonzero(row["mask"])
        assert len(at) == len(value_of) == 9
        assert ((at - 28) % 3 == 0).all()  # the second of a slot's three tokens
        for place in at:
            key = tuple(row["tokens"][place - 1 : place + 1].tolist())
            assert row["targets"][place] == value_of[key]


def test_corruption_replaces_a_share_of_the_writes():
    task = tasks.get("corrupted", pairs=5, passes=4, noise=0.25, length=64, vocab_size=32)
    wrong = []
    for index in range(50):
        row = task.sample(0, index)
        keys, values = row["tokens"][:40].reshape(4, 5, 2).transpose(2, 0, 1)
        assert (keys == keys[0]).all()
        at = np.flatnonzero(row["mask"])
        true = dict(zip(row["tokens"][at].tolist(), row["targets"][at].tolist(), strict=True))
        replaced = values != [true[key] for key in keys[0].tolist()]
        assert replaced.sum() == 5  # of 20
        assert values.min() >= 16
        for place in at:
            column = keys[0].tolist().index(row["tokens"][place])
            group = "corrupted" if replaced[:, column].any() else "clean"
            assert task.groups[row["groups"][place]] == group
        wrong.append(replaced)
    assert np.mean(wrong, axis=0).min() > 0.05  # anywhere, 0.25 expected
    clean = tasks.get("corrupted", noise=0.0)
    row = clean.sample(0, 0)
    answers = clean.oracle(row["tokens"])
    np.testing.assert_array_equal(answers[row["mask"] > 0], row["targets"][row["mask"] > 0])
