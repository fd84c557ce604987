"""A model and its tokens laid over a mesh of emulated devices, and gradients to compare."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from miras_jax.nn import partition


def loss(model, tokens):
    """Mean cross entropy of the next token."""
    logits, _ = model(tokens[:, :-1])
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1))


def two_by_two_by_two():
    """Two devices along each axis but the sequence."""
    return mesh_of(2, 2, 1, 2)


def mesh_of(*shape):
    """A mesh of that many devices along data, fsdp, sequence and tensor."""
    devices = jax.devices()[: math.prod(shape)]
    types = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, partition.AXES, axis_types=types, devices=devices)


def shardings_of(model, mesh):
    """Where the rules put each parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(
            mesh, partition.spec_of(jax.tree_util.keystr(path), x.shape, mesh)
        ),
        model,
    )


def gradient_on(mesh, model, tokens):
    """Loss and gradients with everything laid out; to be called with the mesh set."""
    shardings = shardings_of(model, mesh)
    laid = jax.device_put((model, tokens), (shardings, NamedSharding(mesh, P(partition.BATCH))))
    return jax.jit(jax.value_and_grad(loss), out_shardings=(None, shardings))(*laid)


def assert_same_gradient(got, expected, rounding=3e-4):
    """Compares losses and gradients of a mesh with those of one device.

    Gradients that the partitioner splits wrongly are off by 1e-1. Float32 sums in another order
    differ by a few 1e-7 of their terms, which are of size 1 also where their sum is 1e-4, and by up
    to 1.0e-4 of the sum through the normalised steps of deep memories (seen: memora).
    """
    assert abs(got[0] - expected[0]) <= 1e-5 * abs(expected[0])
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(expected[1]), jax.tree.leaves(got[1]), strict=True
    )
    for (path, x), y in pairs:
        x, y = np.asarray(x), np.asarray(y)
        error = np.abs(x - y).max()
        assert error <= rounding * np.abs(x).max() + 5e-7, jax.tree_util.keystr(path)
