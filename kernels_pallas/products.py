"""Matrix products inside kernels, and their derivatives, at a precision that is said.

A TPU rounds float32 operands to bfloat16 unless told otherwise, and a transposed product does not
remember what its forward pass was told; so both are written out here.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Precision = Literal["highest", "bfloat16"]
Form = Literal["nn", "nt", "tn"]

_CONTRACT = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(a: jax.Array, b: jax.Array, form: Form = "nn", precision: Precision = "highest"):
    """`a b`, "nt" `a b^T`, "tn" `a^T b`, of matrices, in the dtype of a.

    "bfloat16" rounds the operands, those of the derivative too, and sums in float32.
    """
    dims = (_CONTRACT[form], ((), ()))
    if precision == "bfloat16":
        low = (x.astype(jnp.bfloat16) for x in (a, b))
        return lax.dot_general(*low, dims, preferred_element_type=jnp.float32).astype(a.dtype)
    return lax.dot_general(
        a, b, dims, precision=lax.Precision.HIGHEST, preferred_element_type=a.dtype
    )


def _product_forward(a, b, form, precision):
    return product(a, b, form, precision), (a, b)


def _product_backward(form, precision, saved, d):
    a, b = saved
    if form == "nn":
        return product(d, b, "nt", precision), product(a, d, "tn", precision)
    if form == "nt":
        return product(d, b, "nn", precision), product(d, a, "tn", precision)
    return product(b, d, "nt", precision), product(a, d, "nn", precision)


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def sums(chosen: jax.Array, x: jax.Array) -> jax.Array:
    """`chosen x` for bool `chosen [m, C]`, x `[C, n]`: sums of rows of x, to float32 rounding.

    A float32 number is three bfloat16 numbers, and so are its products with 0 and 1: three passes
    of a matrix unit where a float32 product takes six.
    """
    return _sums(chosen, x, "nn")


def _sums(chosen, x, form):
    dims = (_CONTRACT[form], ((), ()))
    if x.dtype != jnp.float32:
        return lax.dot_general(chosen.astype(x.dtype), x, dims, precision=lax.Precision.HIGHEST)
    chosen = chosen.astype(jnp.float32).astype(jnp.bfloat16)
    return sum(
        lax.dot_general(chosen, part, dims, preferred_element_type=jnp.float32)
        for part in bfloat16_parts(x)
    )


def _sums_forward(chosen, x):
    return sums(chosen, x), chosen


def _sums_backward(chosen, d):
    return None, _sums(chosen, d, "tn")


sums.defvjp(_sums_forward, _sums_backward)


def bfloat16_parts(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three bfloat16 arrays whose sum is the float32 x, to its last bit or two."""
    parts = []
    for _ in range(3):
        # Cutting bits off says what a compiler may not simplify away, as it may two conversions.
        bits = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-65536)
        part = lax.bitcast_convert_type(bits, jnp.float32)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return tuple(parts)


def rows_and_columns(rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
    """The row and the column of every entry, int32 `[rows, columns]`."""
    return tuple(lax.broadcasted_iota(jnp.int32, (rows, columns), axis) for axis in (0, 1))


def column(row: jax.Array) -> jax.Array:
    """A row `[1, n]` as a column `[n, 1]`."""
    t, i = rows_and_columns(row.shape[1], row.shape[1])
    return jnp.sum(jnp.where(t == i, row, 0.0), axis=1, keepdims=True)


def as_row(column: jax.Array) -> jax.Array:
    """A column `[n, 1]` as a row `[1, n]`."""
    t, i = rows_and_columns(column.shape[0], column.shape[0])
    return jnp.sum(jnp.where(t == i, column, 0.0), axis=0, keepdims=True)
