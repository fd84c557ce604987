"""The contract between chunk functions and drivers.

A step is the chunk function of one head. A driver loops it over the chunks of a row, the carry on
chip, for all rows and heads in parallel; `scan_reference` says what every driver computes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Tree = Any
"""A pytree of dictionaries with 2-D leaves `[r, c]` per head."""


@runtime_checkable
class Step(Protocol):
    """A chunk of one head. Hashable, because kernels are compiled per step: a frozen dataclass.

    Everything inside is 2-D, float32 and has a lowering in the kernels' compilers; it is also
    differentiated inside the kernel, unless it has a `backward` of its own with the signature
    `(carry, consts, tokens, marks, d_carry, d_y) -> (d_carry, d_consts, d_tokens)`.
    """

    def __call__(
        self,
        carry: Tree,
        consts: Tree,
        tokens: Mapping[str, jax.Array],
        marks: Mapping[str, jax.Array],
    ) -> tuple[Tree, jax.Array]:
        """Reads C tokens.

        Args:
          carry: what goes from chunk to chunk, float32 `[r, c]`.
          consts: what belongs to the head, float32 `[r, c]`.
          tokens: by name, float32 `[C, n]`; a gate per head is a column `[C, 1]`.
          marks: by name, int32 0 or 1 `[C, 1]`, not differentiated: "reset" where a document
            begins, "live" where a token exists.

        Returns:
          the carry after the chunk and `y [C, V]`, float32.
        """


def backward(
    step: Step, carry: Tree, consts: Tree, tokens: Mapping, marks: Mapping, d_carry: Tree, d_y
) -> tuple[Tree, Tree, Mapping]:
    """The cotangents of carry, consts and tokens: by the step's own rule or by `jax.vjp`."""
    if hasattr(step, "backward"):
        return step.backward(carry, consts, tokens, marks, d_carry, d_y)
    _, pull = jax.vjp(lambda *args: step(*args, marks), carry, consts, tokens)
    return pull((d_carry, d_y))


def scan_reference(
    step: Step,
    carry: Tree,
    consts: Tree,
    tokens: Mapping[str, jax.Array],
    marks: Mapping[str, jax.Array],
    *,
    chunk_size: int,
    value_dim: int,
    dtype: jnp.dtype,
) -> tuple[Tree, jax.Array]:
    """Reads T tokens of every row and head in pure JAX.

    Args:
      step: the chunk function.
      carry: leaves float32 `[B, H, r, c]`.
      consts: leaves float32 `[H, r, c]`, the same for all rows.
      tokens: by name, float32 or bfloat16 `[B, H, T, n]`, T a multiple of the chunk size.
      marks: by name, int32 `[B, T]`.
      chunk_size: C.
      value_dim: V.
      dtype: of y.

    Returns:
      the carry after the last token and `y [B, H, T, V]`.
    """

    def chunks(x):
        return x.reshape(x.shape[0] // chunk_size, chunk_size, *x.shape[1:])

    def head(carry, consts, tokens, marks):
        def body(carry, chunk):
            return step(carry, consts, *chunk)

        tokens = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tokens)
        marks = jax.tree.map(lambda x: x[:, None], marks)
        carry, y = jax.lax.scan(body, carry, jax.tree.map(chunks, (tokens, marks)))
        return carry, y.reshape(-1, value_dim).astype(dtype)

    heads = jax.vmap(head, in_axes=(0, 0, 0, None))
    return jax.vmap(heads, in_axes=(0, None, 0, 0))(carry, consts, tokens, marks)


def pull_reference(
    step: Step,
    saved: Tree,
    consts: Tree,
    tokens: Mapping[str, jax.Array],
    marks: Mapping[str, jax.Array],
    d_carry: Tree,
    d_y: jax.Array,
    *,
    chunk_size: int,
) -> tuple[Tree, Tree, Mapping[str, jax.Array]]:
    """The backward pass of a scan in pure JAX, from the states that its kernel has saved.

    Args:
      step, consts, tokens, marks, chunk_size: as in `scan_reference`.
      saved: the carry at the start of every group of chunks, leaves `[B, H, N, r, c]`.
      d_carry, d_y: cotangents of what `scan_reference` returns.

    Returns:
      the cotangents of carry, consts and tokens.
    """
    value_dim, dtype = d_y.shape[3], d_y.dtype
    options = {"chunk_size": chunk_size, "value_dim": value_dim, "dtype": dtype}

    def groups(x, axis):
        """The groups first: `[N, ...]`."""
        count = jax.tree.leaves(saved)[0].shape[2]
        shape = (*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    def body(carried, group):
        d_carry, d_consts = carried
        start, tokens, marks, d_y = group
        _, pull = jax.vjp(
            lambda *args: scan_reference(step, *args, marks, **options), start, consts, tokens
        )
        d_carry, more, d_tokens = pull((d_carry, d_y))
        return (d_carry, jax.tree.map(jnp.add, d_consts, more)), d_tokens

    rows = (
        jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), saved),
        jax.tree.map(lambda x: groups(x, 2), tokens),
        jax.tree.map(lambda x: groups(x, 1), marks),
        groups(d_y, 2),
    )
    begin = (d_carry, jax.tree.map(jnp.zeros_like, consts))
    (d_carry, d_consts), d_tokens = jax.lax.scan(body, begin, rows, reverse=True)
    d_tokens = {
        name: jnp.moveaxis(x, 0, 2).reshape(tokens[name].shape) for name, x in d_tokens.items()
    }
    return d_carry, d_consts, d_tokens


def differentiable(decode: Callable) -> Callable:
    """`decode(step, options, carry, consts, tokens, marks)`, one token, with the derivative of
    `scan_reference`; options have `value_dim` and `dtype`."""

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def run(step, options, *arguments):
        return decode(step, options, *arguments)

    def forward(step, options, *arguments):
        return run(step, options, *arguments), arguments

    def pull(step, options, arguments, cotangents):
        *floats, marks = arguments

        def reference(*floats):
            sizes = {"chunk_size": 1, "value_dim": options.value_dim, "dtype": options.dtype}
            return scan_reference(step, *floats, marks, **sizes)

        return *jax.vjp(reference, *floats)[1](cotangents), None

    run.defvjp(forward, pull)
    return run
