"""What a matrix unit makes of products that are left at default precision.

A TPU rounds their float32 operands to bfloat16, the tensor cores of a GPU to TF32; a CPU, and so
every interpreter of kernels, does neither. Here the rounding is written into a traced function,
into its loops and kernels too. Derivatives are covered when the function that is traced takes them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxpr_as_fun

MANTISSA = {"tpu": 7, "gpu": 10}
"""Bits of an operand's mantissa: bfloat16, TF32. Both have the 8 bits of exponent of float32."""


class Rounded(NamedTuple):
    """A function of the same arguments, and how many products in its text were rounded."""

    call: Callable
    products: int


def rounded(function: Callable, platform: str, *args) -> Rounded:
    """`function`, traced for the shapes of `args`, as the platform's matrix unit computes it."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    count = []
    closed = _rewrite(closed, MANTISSA[platform], count)
    structure = jax.tree.structure(shapes)

    def call(*args):
        return structure.unflatten(jaxpr_as_fun(closed)(*jax.tree.leaves(args)))

    return Rounded(call, len(count))


def _rewrite(value: Any, mantissa: int, count: list) -> Any:
    """A jaxpr, or whatever holds some, with rounded operands."""
    if isinstance(value, ClosedJaxpr):
        return value.replace(jaxpr=_rewrite(value.jaxpr, mantissa, count))
    if isinstance(value, tuple | list):
        return type(value)(_rewrite(x, mantissa, count) for x in value) if _plain(value) else value
    if not isinstance(value, Jaxpr):
        return value
    eqns = []
    for eqn in value.eqns:
        params = {name: _rewrite(x, mantissa, count) for name, x in eqn.params.items()}
        eqn = eqn.replace(params=params)
        if eqn.primitive.name == "dot_general" and _default(eqn):
            count.append(eqn)
            before = [_rounding(eqn, atom, mantissa) for atom in eqn.invars]
            eqns += before
            eqn = eqn.replace(invars=[e.outvars[0] for e in before])
        eqns.append(eqn)
    return value.replace(eqns=eqns)


def _plain(value) -> bool:
    """Whether a sequence is made of its items alone, as a named tuple is not."""
    return type(value) in (tuple, list)


def _default(eqn) -> bool:
    """Whether a product is of float32 operands at default precision."""
    precision = eqn.params["precision"]
    asked = precision if isinstance(precision, tuple) else (precision,)
    plain = all(p in (None, jax.lax.Precision.DEFAULT) for p in asked)
    return plain and all(atom.aval.dtype == jnp.float32 for atom in eqn.invars)


def _rounding(eqn, atom, mantissa: int):
    """The equation that rounds an operand of a product."""
    return eqn.replace(
        primitive=jax.lax.reduce_precision_p,
        invars=[atom],
        outvars=[Var(atom.aval)],
        params={"exponent_bits": 8, "mantissa_bits": mantissa},
    )
