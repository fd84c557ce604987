"""One head of one row: its state and its tokens, what the forms of a memory work on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from miras_jax.memory.algorithm import GradientDescent
from miras_jax.memory.memory import Weights


class Head(NamedTuple):
    """The state of one head of one row; leaves `[inputs, outputs]` by layer.

    Attributes:
      weights: accumulators A.
      momentum: S; empty for gradient descent.
      start: A at the start of the current chunk, equal to `weights` where a chunk begins; empty
        for exact memories. None inside a driver stands for "the chunk begins at `weights`".
      optimizer: what an algorithm of one step a chunk holds, or empty.
    """

    weights: Weights
    momentum: Weights
    start: Weights | None
    optimizer: dict[str, Any]


class Chunk(NamedTuple):
    """C tokens of one head: q, k `[C, K]`, v `[C, V]`, gates by name `[C]` or `[C, n]`.

    `reset [C]` marks the first token of a document, `live [C]` the tokens that exist; None stands
    for no reset and for all live. `address [C, K]` is what predictions are read with; None is k.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    gates: Mapping[str, jax.Array]
    reset: jax.Array | None
    live: jax.Array | None
    address: jax.Array | None = None


def inner_steps(algorithm: GradientDescent, chunk: Chunk) -> tuple[Chunk, int]:
    """The n inner steps of each token, as if they were tokens: `[n C, ...]`, and n.

    A document begins, and the memory decays, with a token's first step; the token reads after its
    last one, so that every n-th row of what is read counts.
    """
    steps = algorithm.steps(chunk.k, chunk.v, chunk.gates)
    n, length = len(steps), chunk.k.shape[0]

    def interleave(rows):
        return (
            rows[0] if n == 1 else jnp.stack(rows, axis=1).reshape(n * length, *rows[0].shape[1:])
        )

    def first(x, other):
        return interleave([x] + [jnp.full_like(x, other)] * (n - 1))

    gates = {
        name: first(x, 0.0) if name in ("log_decay", "log_value_decay") else interleave([x] * n)
        for name, x in chunk.gates.items()
    }
    given = [step.step for step in steps if step.step is not None]
    if given:
        ones = jnp.ones_like(given[0])
        gates["step"] = interleave([ones if s.step is None else s.step for s in steps])
    address = None
    if any(s.address is not None for s in steps):
        address = interleave([s.key if s.address is None else s.address for s in steps])
    return Chunk(
        q=interleave([chunk.q] * n),
        k=interleave([s.key for s in steps]),
        v=interleave([s.value for s in steps]),
        gates=gates,
        reset=None if chunk.reset is None else first(chunk.reset, False),
        live=None if chunk.live is None else interleave([chunk.live] * n),
        address=address,
    ), n


def choose(condition: jax.Array, a: Weights, b: Weights) -> Weights:
    """`a` where the scalar condition holds, else `b`, for every leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def marked(marks: jax.Array | None) -> jax.Array | bool:
    """Whether any of the tokens `[C]` has a mark; by numbers, which unlike bools can leave the
    vectors of a kernel."""
    return False if marks is None else jnp.sum(marks.astype(jnp.int32)) > 0
