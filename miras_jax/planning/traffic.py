"""The collectives of a step where nothing is compiled: what the sharding makes necessary.

Weights are gathered over fsdp where they are used, in every pass over a microbatch, and their
gradients reduced; layers shared out over tensor sum their outputs; copies over data and sequence
sum their gradients; over sequence some memories exchange tokens for heads. A compiler may do more,
and seldom less.
"""

import jax.numpy as jnp

from miras_jax.nn.parallel import needs_heads
from miras_jax.planning.arrays import Arrays
from miras_jax.planning.collectives import Collective, sent
from miras_jax.planning.mesh import piece, sizes
from miras_jax.training.config import TrainConfig


def expected_collectives(config: TrainConfig, arrays: Arrays) -> tuple[Collective, ...]:
    """Returns the collectives of one step, largest first.

    Counts are of parameters by layer. Weights travel in the compute type and so do their gradients,
    which are made in it.
    """
    mesh, model = sizes(config.mesh), config.model
    passes = 2 + model.remat  # forward, again for the backward pass, backward
    width = jnp.dtype(model.dtype).itemsize
    rows, window = piece(config)
    tensors = sum(p.shape[0] if p.name.startswith("blocks") else 1 for p in arrays.parameters)
    found = []

    def add(kind: str, group: int, times: int, size: float) -> None:
        """`times` collectives over arrays of `size` bytes in all."""
        if group > 1:
            found.append(Collective(kind, group, times, size, sent(kind, size, group)))

    cut, whole = [], []
    for p in arrays.parameters:
        layers = p.shape[0] if p.name.startswith("blocks") else 1
        ways = 1
        for axis in p.axes:
            ways *= mesh["tensor"] if axis == "tensor" else 1
        (cut if "fsdp" in p.axes else whole).append((layers, p.count * width / ways))
    turns = config.accumulation
    times, size = (sum(column) for column in zip((0, 0.0), *cut, strict=True))
    add("all-gather", mesh["fsdp"], passes * turns * times, passes * turns * size)
    add("reduce-scatter", mesh["fsdp"], turns * times, turns * size)
    times, size = (sum(column) for column in zip((0, 0.0), *whole, strict=True))
    add("all-reduce", mesh["fsdp"], turns * times, turns * size)
    stream = rows * window * model.dim * width
    # Two sums a layer, of the mixer and the SwiGLU, in every pass.
    sums = 2 * model.depth * passes * turns
    add("all-reduce", mesh["tensor"], sums, sums * stream)
    gradients = 4 * sum(p.count for p in arrays.parameters) / (mesh["fsdp"] * mesh["tensor"])
    add("all-reduce", mesh["data"] * mesh["sequence"], turns * tensors, turns * gradients)
    if needs_heads(model):  # tokens go for heads and back: q, k, v and y
        exchanges = 4 * model.depth * passes * turns
        add("all-to-all", mesh["sequence"], exchanges, exchanges * stream / mesh["tensor"])
    return tuple(sorted(found, key=lambda row: -row.sent))
