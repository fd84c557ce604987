"""What is known of a run's arrays before anything is compiled: sizes and places."""

import math
import re
from typing import NamedTuple

import jax

from miras_jax.planning.mesh import abstract_mesh
from miras_jax.training.config import TrainConfig
from miras_jax.training.program import abstract_batch
from miras_jax.training.state import abstract_state
from miras_jax.training.step import GROUPS


class Parameter(NamedTuple):
    """A parameter; those of stacked layers are one.

    Attributes:
      name: its path.
      shape: of the whole array.
      dtype: of its numbers.
      axes: mesh axes that share out each dimension, "" for none.
      group: as in `step.GROUPS`.
      count: numbers in it.
      device_bytes: of the part on one device.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    group: str
    count: int
    device_bytes: int


class Arrays(NamedTuple):
    """The parameters, and bytes on one device of what a step holds throughout."""

    parameters: tuple[Parameter, ...]
    optimizer: int
    batch: int

    @property
    def count(self) -> int:
        """Numbers in all parameters."""
        return sum(parameter.count for parameter in self.parameters)

    @property
    def device_bytes(self) -> int:
        """Bytes of the parameters on one device."""
        return sum(parameter.device_bytes for parameter in self.parameters)

    def groups(self) -> dict[str, int]:
        """Numbers by group of parameters."""
        counts = {name: 0 for name, _ in GROUPS}
        for parameter in self.parameters:
            counts[parameter.group] += parameter.count
        return {name: count for name, count in counts.items() if count}


def arrays_of(config: TrainConfig, *, packed: bool) -> Arrays:
    """Describes the state and the batch of a run."""
    mesh = abstract_mesh(config.mesh)
    state = abstract_state(config, mesh)
    parameters = tuple(
        _parameter(jax.tree_util.keystr(path), x)
        for path, x in jax.tree_util.tree_leaves_with_path(state.params)
    )
    batch = abstract_batch(config, mesh, packed=packed)
    others = [*jax.tree.leaves(state.opt), state.step]
    optimizer, rows = (sum(map(_device_bytes, xs)) for xs in (others, batch.values()))
    return Arrays(parameters, optimizer, rows)


def _parameter(path: str, x: jax.ShapeDtypeStruct) -> Parameter:
    spec = tuple(x.sharding.spec) + (None,) * (x.ndim - len(x.sharding.spec))
    axes = tuple("" if a is None else a if isinstance(a, str) else "+".join(a) for a in spec)
    group = next(group for group, pattern in GROUPS if re.search(pattern, path))
    name = ".".join(re.findall(r"\w+", path)).removesuffix(".value")  # of the nnx.Param
    return Parameter(name, x.shape, x.dtype.name, axes, group, math.prod(x.shape), _device_bytes(x))


def _device_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
