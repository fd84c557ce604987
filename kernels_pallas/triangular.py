"""Unit lower triangular systems inside kernels: substitution in small blocks, then products.

A chunk of a delta rule needs `(I + L) x = b`, with entries of L near the step size where keys
resemble each other. Newton iterations and Neumann doubling diverge there; substitution does not.

The diagonal blocks are substituted all at once. They lie side by side, `[R, C]`, so that a step is
one row of all blocks: `row_i -= L_ij row_j`, with L_ij of each block spread over the columns of the
block by a product with zeros and ones. Pairs of neighbouring blocks are then merged until one is
left.
"""

from functools import partial

import jax
import jax.numpy as jnp

from kernels_pallas.products import (
    Precision,
    bfloat16_parts,
    narrow_product,
    product,
    rows_and_columns,
    sums,
)

BITS = 4
BLOCK = 1 << BITS
"""R, rows that are inverted one after the other."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def solve_unit_lower(
    lower: jax.Array, b: jax.Array, precision: Precision = "highest", slices: bool = True
) -> jax.Array:
    """Solves `(I + L) x = b`.

    Args:
      lower: L `[C, C]`, zero on and above the diagonal; C at most 16, or a multiple of 16.
      b: `[C, V]`.
      precision: of the products; the substitution is exact to float32.
      slices: whether the compiler can take rows of a value.

    Returns:
      x `[C, V]`. Its derivative is a solve with the transpose, by the same inverse.
    """
    return product(inverse_unit_lower(lower, precision, slices), b, "nn", precision)


def _forward(lower, b, precision, slices):
    inverse = inverse_unit_lower(lower, precision, slices)
    x = product(inverse, b, "nn", precision)
    return x, (inverse, x)


def _backward(precision, slices, saved, dx):
    inverse, x = saved
    db = product(inverse, dx, "tn", precision)
    t, i = rows_and_columns(*inverse.shape)
    return jnp.where(t > i, -product(db, x, "nt", precision), 0.0), db


solve_unit_lower.defvjp(_forward, _backward)


def inverse_unit_lower(
    lower: jax.Array, precision: Precision = "highest", slices: bool = True
) -> jax.Array:
    """`(I + L)^-1` `[C, C]`; the arguments as in `solve_unit_lower`. Not differentiated."""
    size = lower.shape[0]
    inverse = _block_inverses(lower, slices)
    t, i = rows_and_columns(size, size)
    bits = BITS
    while 1 << bits < size:
        # [[A, 0], [B, D]]^-1 = [[A', 0], [-D' B A', D']]; only rows of D change.
        together = t >> (bits + 1) == i >> (bits + 1)
        below = jnp.where(together & (t >> bits != i >> bits), lower, 0.0)
        take, put = _later_halves(size, bits) if slices else ((lambda x: x),) * 2
        change = put(product(take(below), inverse, "nn", precision))
        inverse = inverse - put(product(take(inverse), change, "nn", precision))
        bits += 1
    return inverse


def _later_halves(size: int, bits: int):
    """Two maps: the rows of the later half of every block of `2 << bits` rows, one below the other;
    and those rows back in their places among zeros."""
    half = 1 << bits
    starts = list(range(half, size, 2 * half))
    lengths = [min(half, size - start) for start in starts]

    def take(x):
        return jnp.concatenate(
            [x[start : start + n] for start, n in zip(starts, lengths, strict=True)]
        )

    def put(rows):
        parts, at = [], 0
        for n in lengths:
            parts += [jnp.zeros((half, rows.shape[1]), rows.dtype), rows[at : at + n]]
            at += n
        rest = size - sum(x.shape[0] for x in parts)
        if rest:
            parts.append(jnp.zeros((rest, rows.shape[1]), rows.dtype))
        return jnp.concatenate(parts)

    return take, put


def _block_inverses(lower: jax.Array, slices: bool) -> jax.Array:
    """The inverses of the diagonal blocks of I + L, in their places."""
    size = lower.shape[0]
    rows = min(BLOCK, size)
    if size % rows:
        raise ValueError(f"C must be at most {BLOCK} or a multiple of it, got {size}.")
    t, i = rows_and_columns(size, size)
    own = t >> BITS == i >> BITS
    blocks = jnp.where(own, lower, 0.0).reshape(size // rows, rows, size)
    spread = _spreader(jnp.sum(blocks, axis=0), slices)
    row, col = rows_and_columns(rows, size)
    inverse = (row == col & (BLOCK - 1)).astype(lower.dtype)
    for j in range(rows - 1):
        coefficients = spread(own & (t & (BLOCK - 1) == j))
        if slices:
            row_j = inverse[j : j + 1]
        else:
            row_j = jnp.sum(jnp.where(row == j, inverse, 0.0), axis=0, keepdims=True)
        inverse = inverse - coefficients * row_j
    back = jnp.broadcast_to(inverse[None], (size // rows, rows, size)).reshape(size, size)
    return jnp.where(own, back, 0.0)


def _spreader(x: jax.Array, slices: bool):
    """`chosen -> x chosen` for x `[R, C]`, bool `[C, C]` with one True a column at most; exact."""
    if x.dtype != jnp.float32 or not slices:
        return lambda chosen: sums(x, chosen)
    rows = x.shape[0]
    parts = jnp.concatenate(bfloat16_parts(x, 3))

    def spread(chosen):
        chosen = chosen.astype(jnp.float32).astype(jnp.bfloat16)
        y = narrow_product(parts, chosen)
        return y[:rows] + y[rows : 2 * rows] + y[2 * rows :]

    return spread
