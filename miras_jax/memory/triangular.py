"""Unit lower triangular systems: substitution in small blocks, then matrix products.

The delta rule's chunks need `(I + L) x = b` with entries of L near the step size where keys
resemble each other. Newton iterations and Neumann doubling diverge there; substitution does not.
Written in plain array operations: LAPACK's solver, a foreign call, was seen to deadlock with the
collectives of emulated devices.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

BLOCK = 16
"""Rows that are inverted by substitution, one after the other; larger blocks mean fewer products
but more steps."""


KEPT = "kept"
"""Name of what a backward pass should keep rather than compute again (`jax.checkpoint`)."""


@jax.custom_jvp
def solve_unit_lower(lower: jax.Array, b: jax.Array) -> jax.Array:
    """Solves `(I + L) x = b`.

    Args:
      lower: L `[C, C]`; only what is strictly below the diagonal is read. Any C.
      b: `[C, V]`.

    Returns:
      x `[C, V]`.
    """
    return _solve(*_blocks(lower), b)


@solve_unit_lower.defjvp
def _derivative(primals, tangents):
    # (I + L) x = b gives (I + L) x' = b' - L' x; the transpose of the solve is its gradient.
    (lower, b), (lower_dot, b_dot) = primals, tangents
    blocks = _blocks(lower)
    x = checkpoint_name(_solve(*blocks, b), KEPT)
    return x, _solve(*blocks, b_dot - _product(jnp.tril(lower_dot, -1), x))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # Said here, because derivative rules are traced outside their caller's precision context.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _blocks(lower: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L padded to whole blocks as `[n, n, R, R]`, and the inverses `[n, R, R]` of the diagonal
    blocks of I + L."""
    length = lower.shape[0]
    rows = min(BLOCK, length)
    count = -(-length // rows)
    pad = count * rows - length
    lower = jnp.pad(jnp.tril(lower, -1), ((0, pad), (0, pad)))
    lower = lower.reshape(count, rows, count, rows).swapaxes(1, 2)
    diagonal = lower[jnp.arange(count), jnp.arange(count)]

    def substitute(i, inverse):
        return inverse.at[:, i].add(-_product(diagonal[:, i, None], inverse)[:, 0])

    eye = jnp.broadcast_to(jnp.eye(rows, dtype=lower.dtype), diagonal.shape)
    return lower, jax.lax.fori_loop(1, rows, substitute, eye)


def _solve(lower: jax.Array, inverse: jax.Array, b: jax.Array) -> jax.Array:
    count, rows = inverse.shape[:2]
    length = b.shape[0]
    b = jnp.pad(b, ((0, count * rows - length), (0, 0))).reshape(count, rows, -1)
    solved: list[jax.Array] = []
    for r in range(count):
        rest = b[r]
        for s, x in enumerate(solved):
            rest = rest - _product(lower[r, s], x)
        solved.append(_product(inverse[r], rest))
    return jnp.concatenate(solved)[:length]
