"""Unit lower triangular systems inside kernels: substitution in small blocks, then products.

A chunk of a delta rule needs `(I + L) x = b`, with entries of L near the step size where keys
resemble each other. Newton iterations and Neumann doubling diverge there; substitution does not.

The diagonal blocks are substituted all at once. They lie side by side, `[R, C]`, so that a step is
one row of all blocks: `row_i -= L_ij row_j`, with L_ij of each block spread over the block's columns
by a product with zeros and ones. Pairs of neighbouring blocks are then merged until one is left.
"""

import jax
import jax.numpy as jnp

from kernels_pallas.products import bfloat16_parts, product, rows_and_columns

BLOCK = 16
"""R, rows that are inverted one after the other."""


@jax.custom_vjp
def solve_unit_lower(lower: jax.Array, b: jax.Array) -> jax.Array:
    """Solves `(I + L) x = b` to the precision of the dtype.

    Args:
      lower: L `[C, C]`, zero on and above the diagonal; C at most 16, or a multiple of 16.
      b: `[C, V]`.

    Returns:
      x `[C, V]`. Its derivative is a solve with the transpose, by the same inverse.
    """
    return product(inverse_unit_lower(lower), b)


def _forward(lower, b):
    inverse = inverse_unit_lower(lower)
    x = product(inverse, b)
    return x, (inverse, x)


def _backward(saved, dx):
    inverse, x = saved
    db = product(inverse, dx, "tn")
    t, i = rows_and_columns(*inverse.shape)
    return jnp.where(t > i, -product(db, x, "nt"), 0.0), db


solve_unit_lower.defvjp(_forward, _backward)


def inverse_unit_lower(lower: jax.Array) -> jax.Array:
    """`(I + L)^-1` `[C, C]`; L and C as in `solve_unit_lower`. Not differentiated."""
    size = lower.shape[0]
    inverse = _block_inverses(lower)
    t, i = rows_and_columns(size, size)
    bits = BLOCK.bit_length() - 1
    while 1 << bits < size:
        # [[A, 0], [B, D]]^-1 = [[A', 0], [-D' B A', D']]
        together = t >> (bits + 1) == i >> (bits + 1)
        below = jnp.where(together & (t >> bits != i >> bits), lower, 0.0)
        inverse = inverse - product(inverse, product(below, inverse))
        bits += 1
    return inverse


def _block_inverses(lower: jax.Array) -> jax.Array:
    """The inverses of the diagonal blocks of I + L, in their places."""
    size = lower.shape[0]
    rows = min(BLOCK, size)
    if size % rows:
        raise ValueError(f"C must be at most {BLOCK} or a multiple of it, got {size}.")
    t, i = rows_and_columns(size, size)
    bits = BLOCK.bit_length() - 1
    own = t >> bits == i >> bits
    blocks = jnp.where(own, lower, 0.0).reshape(size // rows, rows, size)
    beside = jnp.sum(blocks, axis=0)
    row, col = rows_and_columns(rows, size)
    inverse = (row == col & (BLOCK - 1)).astype(lower.dtype)
    spread = _spreader(beside)
    for j in range(rows - 1):
        chosen = own & (t & (BLOCK - 1) == j)
        inverse = inverse - spread(chosen) * inverse[j : j + 1]
    back = jnp.broadcast_to(inverse[None], (size // rows, rows, size)).reshape(size, size)
    return jnp.where(own, back, 0.0)


def _spreader(x: jax.Array):
    """`chosen -> x chosen` for x `[R, C]`, bool `[C, C]` with one True a column, exactly."""
    if x.dtype != jnp.float32:
        return lambda chosen: product(x, chosen.astype(x.dtype))
    rows = x.shape[0]
    parts = jnp.concatenate(bfloat16_parts(x))

    def spread(chosen):
        chosen = chosen.astype(jnp.float32).astype(jnp.bfloat16)
        y = jnp.dot(parts, chosen, preferred_element_type=jnp.float32)
        return y[:rows] + y[rows : 2 * rows] + y[2 * rows :]

    return spread
