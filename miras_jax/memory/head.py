"""One head of one row: its state and its tokens, what the forms of a memory work on."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from miras_jax.memory.memory import Weights


class Head(NamedTuple):
    """The state of one head of one row; leaves `[inputs, outputs]` by layer.

    Attributes:
      weights: accumulators A.
      momentum: S; empty for gradient descent.
      start: A at the start of the current chunk, equal to `weights` where a chunk begins; empty
        for exact memories. None inside a driver stands for "the chunk begins at `weights`".
    """

    weights: Weights
    momentum: Weights
    start: Weights | None


class Chunk(NamedTuple):
    """C tokens of one head: q, k `[C, K]`, v `[C, V]`, gates by name `[C]` or `[C, n]`.

    `reset [C]` marks the first token of a document, `live [C]` the tokens that exist; None stands
    for no reset and for all live.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    gates: Mapping[str, jax.Array]
    reset: jax.Array | None
    live: jax.Array | None


def choose(condition: jax.Array, a: Weights, b: Weights) -> Weights:
    """`a` where the scalar condition holds, else `b`, for every layer."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
