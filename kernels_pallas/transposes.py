"""A traced function with its transposes folded into its matrix products.

The derivative of `x @ w` by w is a product whose result is transposed, and `u.T @ d` transposes
before it multiplies. XLA folds such transposes away; a kernel's compiler moves the data.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import Literal

from kernels_pallas.jaxprs import called


class Flipped(NamedTuple):
    """A matrix that stands for its transpose."""

    x: jax.Array


def folded(function: Callable) -> Callable:
    """`function` of pytrees of arrays, pure, without the transposes that products can take over;
    to be called inside a kernel, not to be differentiated."""

    def call(*args):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        results = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), map(_upright, results))

    return call


def _evaluate(jaxpr, consts, args) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    wanted = _wanted(jaxpr)

    def value(v):
        return v.val if isinstance(v, Literal) else known[v]

    for eqn in jaxpr.eqns:
        values = [value(v) for v in eqn.invars]
        if _is_transpose(eqn):
            (x,) = values
            results = [x.x if isinstance(x, Flipped) else Flipped(x)]
        elif _is_product(eqn):
            flip = wanted[eqn.outvars[0], True] > wanted[eqn.outvars[0], False]
            results = [_product(eqn, *values, flip)]
        elif (inner := called(eqn)) is not None:
            inner, more = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            results = _evaluate(inner, more, values)
        else:
            results = eqn.primitive.bind(*map(_upright, values), **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
        known.update(zip(eqn.outvars, results, strict=True))
    return [value(v) for v in jaxpr.outvars]


def _wanted(jaxpr) -> Counter:
    """How often a matrix is used as it is, `(v, False)`, and through transposes, `(v, True)`. A
    product takes either and counts for neither."""
    roots, counts = {}, Counter()
    for eqn in jaxpr.eqns:
        used = [roots.get(v, (v, False)) for v in eqn.invars if not isinstance(v, Literal)]
        if _is_transpose(eqn):
            ((v, flipped),) = used
            roots[eqn.outvars[0]] = (v, not flipped)
        elif not _is_product(eqn):
            counts.update(used)
    counts.update(roots.get(v, (v, False)) for v in jaxpr.outvars if not isinstance(v, Literal))
    return counts


def _is_transpose(eqn) -> bool:
    return eqn.primitive is lax.transpose_p and tuple(eqn.params["permutation"]) == (1, 0)


def _is_product(eqn) -> bool:
    """A product of two matrices over one axis each."""
    if eqn.primitive is not lax.dot_general_p:
        return False
    return all(v.aval.ndim == 2 for v in eqn.invars) and len(eqn.outvars[0].aval.shape) == 2


def _product(eqn, a, b, flip: bool) -> Any:
    """The product, or its transpose, turned."""
    (((axis_a,), (axis_b,)), _) = eqn.params["dimension_numbers"]
    if isinstance(a, Flipped):
        a, axis_a = a.x, 1 - axis_a
    if isinstance(b, Flipped):
        b, axis_b = b.x, 1 - axis_b
    sides = [(a, axis_a), (b, axis_b)]
    (a, axis_a), (b, axis_b) = reversed(sides) if flip else sides
    params = {**eqn.params, "dimension_numbers": (((axis_a,), (axis_b,)), ((), ()))}
    y = lax.dot_general_p.bind(a, b, **params)
    return Flipped(y) if flip else y


def _upright(x):
    return lax.transpose(x.x, (1, 0)) if isinstance(x, Flipped) else x
