"""A traced function rewritten into operations that the Triton lowering of Pallas has.

A step is written once, for every back end; what Triton lacks is put together here from what it has,
on the jaxpr, so that derivatives are covered too:

- a slice, a concatenation or a padding in aligned blocks is a reshape and a masked sum or select;
- parts that are put together, multiplied and taken apart again stay apart;
- rows that move round (jnp.roll, by any number) are a product with a permutation;
- a product with a side under 16, a batch or several contracted axes is a broadcast multiply and a
  sum (tensor cores take no less than 16);
- a product of float32 operands asked for at Precision.HIGHEST uses `algorithm`: on tensor cores in
  three passes of TF32, where HIGHEST itself becomes scalar multiply-adds that compile for minutes;
- one of float32 operands at the default precision rounds them to bfloat16, as on a TPU: TF32
  would take twice the shared memory;
- a product of operands of two types (which derivatives make) rounds both to the narrower one;
- calls are written out, and what nothing uses is dropped.

Every array of a Triton program has a size that is a power of two, so blocks that are not aligned to
their own size (`x[1:]`) are refused.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas.jaxprs import called
from kernels_pallas.products import bfloat16_parts

SMALLEST = 16
"""The smallest side of a product on tensor cores: K of a bfloat16 product, M of any."""

BROADCAST = 2**17
"""Entries of the largest broadcast that takes a product's place: twice a register file."""

BODIES = {"scan": ("jaxpr",), "while": ("body_jaxpr", "cond_jaxpr"), "cond": ("branches",)}
IDENTITIES = {"copy", "copy_p", "name", "optimization_barrier", "stop_gradient"}


class How(NamedTuple):
    """What is given to a program beside its arguments.

    Attributes:
      algorithm: a `jax.lax.DotAlgorithmPreset` in place of Precision.HIGHEST, or None to keep it.
      zero: an int32 zero that the compiler cannot know, or None. It is added to every index that a
        program counts, or masks and permutations, the same in every turn of a loop, would all be
        made before it and kept in registers.
    """

    algorithm: Any = None
    zero: jax.Array | None = None


PLAIN = How()


def rewritten(function: Callable, how: How = PLAIN) -> Callable:
    """`function` in operations that lower in Pallas-Triton; meant to be called inside a kernel.

    Args:
      function: of pytrees of arrays, pure; it must take every array as an argument.
      how: see there.

    Raises:
      NotImplementedError: when traced, for an operation that cannot be put together.
    """

    def call(*args):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        results = map(_whole, _evaluate(closed, jax.tree.leaves(args), how))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return call


class _Parts(NamedTuple):
    """A concatenation that was not formed, because its size may be no power of two."""

    parts: tuple
    axis: int


class _Window(NamedTuple):
    """A slice that was not formed: two of them may be the halves of a rotation."""

    x: Any
    axis: int
    low: int
    size: int


LAZY = (_Parts, _Window)


def _whole(x):
    if isinstance(x, _Parts):
        return _joined(*map(_whole, x.parts), dimension=x.axis)
    return _formed(x) if isinstance(x, _Window) else x


def _shape(x) -> tuple[int, ...]:
    if isinstance(x, _Window):
        return (*x.x.shape[: x.axis], x.size, *x.x.shape[x.axis + 1 :])
    return x.shape


def _evaluate(closed, args: Sequence, how) -> list:
    """The results of a closed jaxpr, or of an open one without constants."""
    jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    env: dict[Any, Any] = {}
    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return atom.val if hasattr(atom, "val") else env[atom]

    for eqn in _used(jaxpr):
        results = _apply(eqn, [read(atom) for atom in eqn.invars], how)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _used(jaxpr) -> list:
    """The equations that the results depend on, in order."""
    used = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or used.intersection(eqn.outvars):
            kept.append(eqn)
            used.update(v for v in eqn.invars if not hasattr(v, "val"))
    return kept[::-1]


def _apply(eqn, args: list, how) -> Sequence:
    name, params = eqn.primitive.name, eqn.params
    if name in IDENTITIES:
        return args
    if (function := called(eqn)) is not None:
        return _evaluate(function, args, how)
    if name == "concatenate":
        return [_concatenated(list(args), params["dimension"], how)]
    if name == "slice" and not isinstance(args[0], LAZY) and _dense(params):
        window = _window(args[0], params["start_indices"], params["limit_indices"])
        if window is not None:
            return [window]
    if any(isinstance(x, LAZY) for x in args):
        apart = _apart(name, params, args, how)
        if apart is not None:
            return [apart]
        args = list(map(_whole, args))
    if name in RULES:
        out = RULES[name](*args, how=how, **params)
        return out if eqn.primitive.multiple_results else [out]
    if name in BODIES:
        params = params | {key: _bodies(params[key], how) for key in BODIES[name]}
    out = eqn.primitive.bind(*args, **params)
    return out if eqn.primitive.multiple_results else [out]


def _bodies(closed, how):
    if isinstance(closed, tuple):
        return tuple(_bodies(branch, how) for branch in closed)

    def body(*args):
        return list(map(_whole, _evaluate(closed, args, how._replace(zero=None))))

    return jax.make_jaxpr(body)(*closed.in_avals)


def _dense(params: dict) -> bool:
    """Whether a slice leaves nothing out between its ends."""
    return set(params["strides"] or (1,)) == {1}


def _window(x, starts, limits) -> _Window | None:
    """A slice of one axis."""
    cut = [i for i, n in enumerate(x.shape) if limits[i] - starts[i] < n]
    if len(cut) != 1:
        return None
    (axis,) = cut
    return _Window(x, axis, starts[axis], limits[axis] - starts[axis])


def _concatenated(args: list, axis: int, how: How):
    args = [x for x in args if _shape(x)[axis]]
    if len(args) == 1:
        return args[0]
    if len(args) == 2 and all(isinstance(x, _Window) and x.axis == axis for x in args):
        first, second = args
        round_ = second.low == 0 and second.size == first.low
        if first.x is second.x and round_ and first.low + first.size == first.x.shape[axis]:
            return _rotated(first.x, axis, first.low, how)
    return _Parts(tuple(args), axis)


def _apart(name: str, params: dict, args: list, how):
    """The result of an operation that acts on parts one by one, or None."""
    x = args[0]
    if not isinstance(x, _Parts):
        return None
    if name == "dot_general" and not isinstance(args[1], LAZY):
        (sums, _), (batch, _) = params["dimension_numbers"]
        if x.axis not in sums and not batch:
            free = sum(i not in sums for i in range(x.axis))
            parts = [_dot(_whole(p), args[1], how=how, **params) for p in x.parts]
            return _Parts(tuple(parts), free)
    if name == "slice" and _dense(params):
        low, high = (params[key][x.axis] for key in ("start_indices", "limit_indices"))
        at = 0
        for part in x.parts:
            size = _shape(part)[x.axis]
            if (low, high) == (at, at + size):
                return part
            at += size
    return None


def _refuse(what: str, *shapes) -> NotImplementedError:
    listed = ", ".join(str(tuple(shape)) for shape in shapes)
    return NotImplementedError(
        f"A Triton kernel cannot do {what} on {listed}: use blocks that are aligned to their own "
        "power-of-two size, or choose form='chunked'."
    )


def _index(shape, axis, how=PLAIN) -> jax.Array:
    index = lax.broadcasted_iota(jnp.int32, shape, axis)
    return index if how.zero is None else index + how.zero


def _pick(x, axis: int, where) -> jax.Array:
    """The one entry of `axis` at the index `where`; the axis goes."""
    kept = jnp.where(_index(x.shape, axis) == where, x, jnp.zeros((), x.dtype))
    if x.dtype == jnp.bool_:
        return jnp.max(kept.astype(jnp.int32), axis) > 0
    return jnp.sum(kept, axis, dtype=x.dtype)


def _formed(window: _Window) -> jax.Array:
    starts, limits = [0] * window.x.ndim, list(window.x.shape)
    starts[window.axis], limits[window.axis] = window.low, window.low + window.size
    return _slice(window.x, start_indices=starts, limit_indices=limits)


def _rotated(x, axis: int, by: int, how: How) -> jax.Array:
    """Entry r of the axis is entry r + by of x, counted round; float32 to its last bit or two."""
    n = x.shape[axis]
    if x.ndim != 2 or x.dtype != jnp.float32:
        raise _refuse(f"a rotation of {x.dtype}", x.shape)
    to, source = (_index((n, n), i, how) for i in ((0, 1) if axis == 0 else (1, 0)))
    moved = ((to + by) & (n - 1)) == source
    permutation = moved.astype(jnp.float32).astype(jnp.bfloat16)
    dims = (((1,), (0,)), ((), ()))
    pairs = [(permutation, p) if axis == 0 else (p, permutation) for p in bfloat16_parts(x, 3)]
    return sum(
        _dot(*pair, dimension_numbers=dims, precision=None, preferred_element_type=jnp.float32)
        for pair in pairs
    )


def _slice(x, *, start_indices, limit_indices, strides=None, how=PLAIN):
    for axis, (low, high) in enumerate(zip(start_indices, limit_indices, strict=True)):
        total, step = x.shape[axis], 1 if strides is None else strides[axis]
        size = -(-(high - low) // step)
        if size == total:
            continue
        rest = x.shape[:axis], x.shape[axis + 1 :]
        if step == 1 and total % size == 0 and low % size == 0:
            x = x.reshape(*rest[0], total // size, size, *rest[1])
            x = _pick(x, axis, low // size)
        elif step > 1 and total == size * step and low < step:
            x = x.reshape(*rest[0], size, step, *rest[1])
            x = _pick(x, axis + 1, low)
        else:
            raise _refuse(f"a slice {low}:{high}:{step} of axis {axis}", x.shape)
    return x


def _dynamic_slice(x, *starts, slice_sizes, how):
    for axis, (start, size) in enumerate(zip(starts, slice_sizes, strict=True)):
        if size == x.shape[axis]:
            continue
        if size != 1:
            raise _refuse(f"a dynamic slice of {size} entries", x.shape)
        start = jnp.clip(start, 0, x.shape[axis] - 1)
        x = jnp.expand_dims(_pick(x, axis, start), axis)
    return x


def _dynamic_update_slice(x, update, *starts, how):
    here = None
    for axis, (start, size) in enumerate(zip(starts, update.shape, strict=True)):
        if size == x.shape[axis]:
            continue
        if size != 1:
            raise _refuse(f"a dynamic update of {update.shape}", x.shape)
        hit = _index(x.shape, axis) == jnp.clip(start, 0, x.shape[axis] - 1)
        here = hit if here is None else here & hit
    update = jnp.broadcast_to(update, x.shape)
    return update if here is None else jnp.where(here, update, x)


def _joined(*parts, dimension):
    size, count = parts[0].shape[dimension], len(parts)
    if any(part.shape[dimension] != size for part in parts) or count & (count - 1):
        raise _refuse("a concatenation", *(part.shape for part in parts))
    shape = (*parts[0].shape[:dimension], count, *parts[0].shape[dimension:])
    block = _index(shape, dimension)
    whole = jnp.broadcast_to(jnp.expand_dims(parts[0], dimension), shape)
    for i, part in enumerate(parts[1:], 1):
        whole = jnp.where(block == i, jnp.expand_dims(part, dimension), whole)
    return whole.reshape(*shape[:dimension], count * size, *shape[dimension + 2 :])


def _stack(*parts, axis, how):
    return _joined(*(jnp.expand_dims(part, axis) for part in parts), dimension=axis)


def _unstack(x, *, axis, how):
    return [_pick(x, axis, i) for i in range(x.shape[axis])]


def _pad(x, value, *, padding_config, how):
    for axis, (low, high, interior) in enumerate(padding_config):
        if min(low, high) < 0 and not interior:  # the derivative of a padding
            cut = _window(
                x,
                [-min(low, 0) if i == axis else 0 for i in range(x.ndim)],
                [n + min(high, 0) if i == axis else n for i, n in enumerate(x.shape)],
            )
            x, low, high = _whole(cut), max(low, 0), max(high, 0)
        size = x.shape[axis]
        total = low + high + size + (size - 1) * interior
        if total == size:
            continue
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        blocks = min(low, high) >= 0 and not interior and not (total % size or low % size)
        spread = interior and total == size * (interior + 1) and 0 <= low <= interior
        if not (blocks or spread):
            raise _refuse(f"padding by {(low, high, interior)}", x.shape)
        at = axis + bool(spread)
        shape = (*before, size, interior + 1, *after) if spread else None
        shape = shape or (*before, total // size, size, *after)
        hit = _index(shape, at) == (low if spread else low // size)
        x = jnp.where(hit, jnp.expand_dims(x, at), value).reshape(*before, total, *after)
    return x


def _reduce(x, *, axes, how, largest, **_):
    reduce = jnp.max if largest else jnp.min
    return reduce(x.astype(jnp.int32), axes) > 0


def _iota(*, dtype, shape, dimension, sharding=None, how):
    return _index(shape, dimension, how).astype(dtype)


def _cumsum(x, *, axis, reverse, how):
    if not reverse:
        return lax.cumsum(x, axis)
    if x.ndim != 2:
        raise _refuse("a reversed running sum", x.shape)
    n = x.shape[axis]
    row, column = (_index((n, n), i, how) for i in (0, 1))
    later = (row <= column if axis == 0 else row >= column).astype(x.dtype)
    pair = (later, x) if axis == 0 else (x, later)
    precision = (lax.Precision.HIGHEST,) * 2
    return _dot(*pair, dimension_numbers=(((1,), (0,)), ((), ())), precision=precision,
                preferred_element_type=x.dtype, how=how)  # fmt: skip


def _reduce_precision(x, *, exponent_bits, mantissa_bits, how):
    if (exponent_bits, mantissa_bits) != (8, 7):
        raise _refuse(f"rounding to {mantissa_bits} bits", x.shape)
    return x.astype(jnp.bfloat16).astype(x.dtype)


def _dot(a, b, *, dimension_numbers, precision, preferred_element_type, how=PLAIN, **_):
    (sums_a, sums_b), (batch_a, batch_b) = dimension_numbers
    if a.dtype != b.dtype:
        narrow = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
        a, b = a.astype(narrow), b.astype(narrow)
    out = preferred_element_type or a.dtype
    simple = a.ndim == b.ndim == 2 and len(sums_a) == 1 and not batch_a
    if simple and min(a.shape + b.shape) >= SMALLEST:
        exact = isinstance(precision, tuple) and lax.Precision.HIGHEST in precision
        if precision is None or precision == (lax.Precision.DEFAULT,) * 2:
            a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
        elif exact and how.algorithm is not None:
            precision = how.algorithm if a.dtype == jnp.float32 else None
        return lax.dot_general(
            a, b, dimension_numbers, precision=precision, preferred_element_type=out
        )

    # Axes in the order: batch, free of a, free of b, contracted.
    free_a = [i for i in range(a.ndim) if i not in (*sums_a, *batch_a)]
    free_b = [i for i in range(b.ndim) if i not in (*sums_b, *batch_b)]
    sizes = [a.shape[i] for i in (*batch_a, *free_a)], [b.shape[i] for i in free_b]
    entries = math.prod(sizes[0] + sizes[1]) * math.prod(a.shape[i] for i in sums_a)
    if entries > BROADCAST:
        raise NotImplementedError(
            f"A Triton kernel cannot multiply {a.shape} by {b.shape}: products on tensor cores "
            f"have two axes of at least {SMALLEST} each, and {entries} entries written out are too "
            "many."
        )
    a = lax.transpose(a, (*batch_a, *free_a, *sums_a)).astype(out)
    b = lax.transpose(b, (*batch_b, *free_b, *sums_b)).astype(out)
    batch, left, right = len(batch_a), len(free_a), len(free_b)
    a = jnp.expand_dims(a, tuple(range(batch + left, batch + left + right)))
    b = jnp.expand_dims(b, tuple(range(batch, batch + left)))
    product = a * b
    return jnp.sum(product, tuple(range(batch + left + right, product.ndim)))


RULES: dict[str, Callable] = {
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "stack": _stack,
    "unstack": _unstack,
    "pad": _pad,
    "reduce_or": lambda x, **kw: _reduce(x, largest=True, **kw),
    "reduce_and": lambda x, **kw: _reduce(x, largest=False, **kw),
    "iota": _iota,
    "cumsum": _cumsum,
    "reduce_precision": _reduce_precision,
    "dot_general": _dot,
}
