"""Batches laid on devices: each device gets its rows, from a host that has no others."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from miras_jax.nn.partition import AXES, BATCH
from miras_jax.training.batches import local_rows, put


class OneHost(NamedSharding):
    """A sharding of which this process has some of the devices."""

    here: tuple[int, ...] = ()

    def addressable_devices_indices_map(self, shape):
        return {d: i for d, i in self.devices_indices_map(shape).items() if d.id in self.here}


@pytest.mark.parametrize(
    ("shape", "here", "rows"),
    [
        ((2, 2, 1, 2), (0, 1, 2, 3), [0, 1, 2, 3]),
        ((2, 2, 2, 1), (0, 4), [0, 1, 4, 5]),  # hosts need not be neighbours on the mesh
        ((1, 1, 1, 8), (5,), [*range(8)]),  # rows that several hosts hold
    ],
)
def test_rows_of_a_host(shape, here, rows):
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 4)
    sharding = OneHost(mesh, PartitionSpec(BATCH))
    sharding.here = here
    assert local_rows(sharding, 8) == rows


@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (8, 1, 1, 1), (1, 1, 8, 1)])
def test_put_is_the_batch(shape):
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 4)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    batch = {"tokens": np.arange(16 * 3).reshape(16, 3), "mask": np.arange(16.0)}
    placed = put(batch, sharding, 16, local_rows(sharding, 16))
    for name, x in batch.items():
        assert placed[name].sharding == sharding
        np.testing.assert_array_equal(placed[name], x)


def test_put_refuses_rows_that_a_host_has_not():
    mesh = jax.make_mesh((8, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    with pytest.raises(KeyError):
        put({"x": np.arange(4)}, sharding, 8, range(4))
