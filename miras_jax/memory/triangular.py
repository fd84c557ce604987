"""Unit lower triangular systems: substitution in small blocks, then matrix products.

The delta rule's chunks need `(I + L) x = b` with entries of L near the step size where keys
resemble each other. Newton iterations and Neumann doubling diverge there; substitution does not.
Written in plain array operations, so that it runs wherever a chunk function runs: inside a kernel,
and on emulated devices, where LAPACK's solver, a foreign call, can deadlock with collectives.
"""

import jax
import jax.numpy as jnp

BLOCK = 16
"""Rows that are inverted by substitution, one after the other; larger blocks mean fewer products
but more steps."""


@jax.custom_vjp
def solve_unit_lower(lower: jax.Array, b: jax.Array) -> jax.Array:
    """Solves `(I + L) x = b`.

    Args:
      lower: L `[C, C]`; only what is strictly below the diagonal is read. Any C.
      b: `[C, V]`.

    Returns:
      x `[C, V]`.
    """
    return _solve(*_blocks(lower), b, transpose=False)


def _forward(lower, b):
    blocks = _blocks(lower)
    x = _solve(*blocks, b, transpose=False)
    return x, (blocks, x)


def _backward(residuals, x_bar):
    # b_bar = (I + L)^-T x_bar and L_bar = -b_bar x^T.
    blocks, x = residuals
    b_bar = _solve(*blocks, x_bar, transpose=True)
    return -jnp.tril(b_bar @ x.T, -1), b_bar


solve_unit_lower.defvjp(_forward, _backward)


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
        row = jnp.einsum("nj,njk->nk", diagonal[:, i], inverse)
        return inverse.at[:, i].add(-row)

    eye = jnp.broadcast_to(jnp.eye(rows, dtype=lower.dtype), diagonal.shape)
    return lower, jax.lax.fori_loop(1, rows, substitute, eye)


def _solve(lower: jax.Array, inverse: jax.Array, b: jax.Array, *, transpose: bool) -> jax.Array:
    count, rows = inverse.shape[:2]
    length = b.shape[0]
    b = jnp.pad(b, ((0, count * rows - length), (0, 0))).reshape(count, rows, -1)
    solved: dict[int, jax.Array] = {}
    for r in reversed(range(count)) if transpose else range(count):
        rest = b[r]
        for s, x in solved.items():
            rest = rest - (lower[s, r].T if transpose else lower[r, s]) @ x
        solved[r] = (inverse[r].T if transpose else inverse[r]) @ rest
    return jnp.concatenate([solved[r] for r in range(count)])[:length]
