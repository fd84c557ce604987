"""Batches on the devices of one or several processes: each host gives the rows of its devices."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding


def local_rows(sharding: NamedSharding, count: int) -> list[int]:
    """The rows of a batch of `count` that the devices of this process hold, in order."""
    slices = sharding.addressable_devices_indices_map((count,)).values()
    return sorted({row for (rows,) in slices for row in range(count)[rows]})


def put(
    batch: Mapping[str, np.ndarray], sharding: NamedSharding, count: int, rows: Sequence[int]
) -> dict[str, jax.Array]:
    """Lays a batch of `count` rows on the devices.

    Args:
      batch: arrays [len(rows), ...], rows of the batch in the order of `rows`.
      sharding: of the whole arrays [count, ...].
      count: rows of the whole batch, of all processes.
      rows: which of them `batch` has: at least those of `local_rows`.
    """
    place = {row: i for i, row in enumerate(rows)}

    def put_one(x: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = index[0].indices(count)
            # Rows of one device are next to each other in any order that is sorted.
            return x[place[first] : place[first] + stop - first][:, *index[1:]]

        return jax.make_array_from_callback((count, *x.shape[1:]), sharding, part)

    return {name: put_one(x) for name, x in batch.items()}
