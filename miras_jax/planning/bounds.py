"""The least time that a step can take on a machine: products, memory, links, each at its peak."""

import dataclasses
from collections.abc import Iterable

import jax.numpy as jnp

from miras_jax.planning.arrays import Arrays
from miras_jax.planning.collectives import Collective
from miras_jax.planning.mesh import piece, sizes
from miras_jax.planning.topology import Topology
from miras_jax.training.config import TrainConfig

DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds of one step, each resource alone at its peak; a step takes at least the longest.

    Attributes:
      compute: matrix products, those of recomputation included.
      memory: what must pass between a device and its HBM.
      network: what each device must send to others.
    """

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        """The longest."""
        return max(self.compute, self.memory, self.network)

    @property
    def binding(self) -> str:
        """Which is the longest."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def step_flops(config: TrainConfig) -> float:
    """FLOPs of the model in one step, forward and backward; recomputation not counted."""
    data = config.data
    return 3 * config.model.flops_per_token(data.window) * data.window * data.batch_size


def memory_traffic(config: TrainConfig, arrays: Arrays) -> float:
    """Bytes that pass between one device and its HBM in a step, at least.

    Parameters and moments are read and written, gradients written and read; the weights that a
    device multiplies with are read in every pass over a microbatch; the residual stream is written
    at every layer and read again for the backward pass.
    """
    mesh, model = sizes(config.mesh), config.model
    width = jnp.dtype(model.dtype).itemsize
    state = 2 * (arrays.device_bytes + arrays.optimizer) + 2 * arrays.device_bytes
    weights = (2 + model.remat) * config.accumulation * arrays.count * width / mesh["tensor"]
    rows, window = piece(config)
    stream = config.accumulation * rows * window * model.dim * width
    return state + weights + 2 * model.depth * stream


def bounds_of(
    config: TrainConfig, topology: Topology, arrays: Arrays, collectives: Iterable[Collective]
) -> Bounds | None:
    """Returns the bounds; None for emulated devices, which have no peaks."""
    chip = topology.chip
    if chip is None:
        return None
    again = 4 / 3 if config.model.remat else 1
    compute = again * step_flops(config) / (chip.flops * topology.chips)
    memory = memory_traffic(config, arrays) / (chip.bandwidth / chip.devices)
    inside = outside = 0.0
    for row in collectives:
        inside += row.sent
        if chip.network and row.group > chip.per_host:
            # A ring through all hosts: of each one's cards together as much leaves it.
            outside += row.sent / chip.per_host
    network = max(
        inside / (chip.link / chip.devices), outside / chip.network if chip.network else 0.0
    )
    return Bounds(compute, memory, network)
