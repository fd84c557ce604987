"""State tracking: products by hand, and the laws of a group."""

import itertools

import numpy as np
import pytest

from miras_jax import tasks
from miras_jax.tasks.states import products, swaps


def test_parity_is_a_running_sum():
    task = tasks.get("parity", length=200)
    row = task.sample(0, 0)
    np.testing.assert_array_equal(row["targets"], np.cumsum(row["tokens"][:-1]) % 2)
    assert row["mask"].all()


def test_s3_by_hand():
    # 0 (0,1,2)  1 (0,2,1)  2 (1,0,2)  3 (1,2,0)  4 (2,0,1)  5 (2,1,0), images of 0, 1 and 2.
    task = tasks.get("s3", length=5)
    # 2 after 1: 0 -> 0 -> 1, 1 -> 2 -> 2, 2 -> 1 -> 0, which is 3; then 3 after 3 is 4, 4 after 4
    # is 3, and 4 after 3 nothing at all.
    assert task.oracle(np.array([1, 2, 3, 4, 4, 0])).tolist() == [1, 3, 4, 3, 0]


@pytest.mark.parametrize("degree", [2, 3, 4, 5])
def test_products_are_those_of_the_group(degree):
    table = np.array(products(degree))
    size = len(table)
    np.testing.assert_array_equal(table[0], np.arange(size))
    np.testing.assert_array_equal(table[:, 0], np.arange(size))
    for line in (*table, *table.T):
        assert len({*line.tolist()}) == size
    random = np.random.default_rng(0)
    a, b, c = random.integers(size, size=(3, 200))
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])
    matrices = np.stack([np.eye(degree)[list(p)] for p in itertools.permutations(range(degree))])
    # Row i of a matrix has its 1 at p(i), so that the product of a and b is that of b after a.
    np.testing.assert_array_equal(matrices[a] @ matrices[b], matrices[table[b, a]])


def test_swaps_alternate_between_odd_and_even():
    assert swaps(3).tolist() == [1, 2, 5]
    assert len(swaps(5)) == 10
    task = tasks.get("s5", length=64, elements="swaps")
    assert task.chance == 1 / 60
    signs = np.array(
        [round(np.linalg.det(np.eye(5)[list(p)])) for p in itertools.permutations(range(5))]
    )
    batch = task.batch(0, 0, 20)
    assert np.isin(batch["tokens"][:, :-1], swaps(5)).all()
    assert (signs[batch["targets"]] == [-1, 1] * 32).all()


def test_groups_are_positions():
    task = tasks.get("s5", length=100)
    assert task.groups == ("position_1-32", "position_33-64", "position_65-128")
    assert np.bincount(task.sample(0, 0)["groups"]).tolist() == [32, 32, 36]
