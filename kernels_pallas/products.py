"""Matrix products inside kernels, and their derivatives, at a precision that is said.

A TPU rounds float32 operands to bfloat16 unless told otherwise, and a transposed product does not
remember what its forward pass was told; so both are written out here.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Precision = Literal["highest", "bfloat16", "bfloat16x3", "bfloat16x6"]
"""How operands are taken: "highest" in their own dtype; "bfloat16" rounded; "x3" and "x6" float32
as two or three bfloat16 numbers each, without their smallest products: relative errors of 2^-16 and
2^-23. A compiler for GPUs makes scalar code of "highest" and uses its matrix units for the rest."""
Form = Literal["nn", "nt", "tn"]

_CONTRACT = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}


def narrow_product(a: jax.Array, b: jax.Array, form: Form = "nn") -> jax.Array:
    """The product of bfloat16 matrices, summed in float32. That its operands are narrow is said,
    because a user's `jax.default_matmul_precision` would ask for more than a TPU's compiler takes.
    """
    return lax.dot_general(
        a,
        b,
        (_CONTRACT[form], ((), ())),
        precision=lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(a: jax.Array, b: jax.Array, form: Form = "nn", precision: Precision = "highest"):
    """`a b`, "nt" `a b^T`, "tn" `a^T b`, of matrices; summed in float32, or in float64 if a is.

    The precision holds for the products of the derivative too.
    """
    times = partial(narrow_product, form=form)
    if precision == "bfloat16":
        return times(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).astype(a.dtype)
    if precision == "highest" or a.dtype != jnp.float32:
        dims, highest = (_CONTRACT[form], ((), ())), lax.Precision.HIGHEST
        return lax.dot_general(a, b, dims, precision=highest, preferred_element_type=a.dtype)
    if precision == "bfloat16x3":
        (a1, a2), (b1, b2) = bfloat16_parts(a, 2), bfloat16_parts(b, 2)
        return times(a1, b1) + (times(a1, b2) + times(a2, b1))
    (a1, a2, a3), (b1, b2, b3) = bfloat16_parts(a, 3), bfloat16_parts(b, 3)
    small = times(a2, b2) + (times(a1, b3) + times(a3, b1))
    return times(a1, b1) + ((times(a1, b2) + times(a2, b1)) + small)


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
def sums(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a b` of matrices of which one is bool: sums of rows or columns, to float32 rounding.

    A float32 number is three bfloat16 numbers, and so are its products with 0 and 1: three passes
    of a matrix unit where a float32 product takes six.
    """
    return _sums(a, b, "nn")


def _sums(a, b, form):
    dtype = b.dtype if a.dtype == jnp.bool_ else a.dtype
    if dtype != jnp.float32:
        a, b, dims = a.astype(dtype), b.astype(dtype), (_CONTRACT[form], ((), ()))
        return lax.dot_general(a, b, dims, precision=lax.Precision.HIGHEST)

    def parts(x):
        if x.dtype == jnp.bool_:
            return [x.astype(jnp.float32).astype(jnp.bfloat16)]
        return bfloat16_parts(x, 3)

    products = [narrow_product(x, y, form) for x in parts(a) for y in parts(b)]
    return sum(products[1:], products[0])


def _sums_forward(a, b):
    return sums(a, b), (a, b)


def _sums_backward(saved, d):
    a, b = saved
    if a.dtype == jnp.bool_:
        return None, _sums(a, d, "tn")
    return _sums(d, b, "nt"), None


sums.defvjp(_sums_forward, _sums_backward)


def bfloat16_parts(x: jax.Array, count: int) -> list[jax.Array]:
    """`count` bfloat16 arrays whose sum is the float32 x, to 9 bits for the last and 8 for each
    before; three give all but the last bit or so."""
    parts = []
    for _ in range(count - 1):
        # Cutting bits off says what a compiler may not simplify away, as it may two conversions.
        bits = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-65536)
        part = lax.bitcast_convert_type(bits, jnp.float32)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return [*parts, x.astype(jnp.bfloat16)]


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
