"""Reads a sequence with a kernel: the arrays of `memorize` in, its state and `y` out.

Kernels want `[B, H, T, n]`, whole groups of chunks and 2-D states. A linear memory is padded with
tokens that do nothing. A memory whose gradients are taken at the chunk's start is laid on its chunk
grid, with a mark at the tokens that live.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas.deep import DeepStep
from kernels_pallas.linear import linear_step, linear_tokens
from kernels_pallas.token import TokenStep
from miras_jax.memory.memory import Memory

LINEAR_CHUNK = {"tpu": 128, "gpu": 32}
"""Tokens of a chunk of a linear memory, which is the same function at every chunk size; chosen by
schedule lengths and spilled registers (docs/decisions)."""
SHORTEST_CHUNK = 16
MOST_RECOMPUTED = 8
"""Chunks that a backward pass computes again from one saved state, at most."""


def group_size(carry: Any, tokens: Mapping, chunk_size: int) -> int:
    """Chunks a saved state: as many as it takes for their tokens to weigh as much in HBM as the
    state, a power of two up to `MOST_RECOMPUTED`."""
    state = sum(x.shape[2] * x.shape[3] * x.dtype.itemsize for x in jax.tree.leaves(carry))
    chunk = sum(chunk_size * x.shape[3] * x.dtype.itemsize for x in tokens.values())
    group = 1
    while group < MOST_RECOMPUTED and group * chunk < state:
        group *= 2
    return group


def read(
    memory: Memory,
    initial: Mapping[str, jax.Array],
    held: tuple,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gates: Mapping[str, jax.Array],
    reset: jax.Array | None,
    phase: jax.Array | None,
    *,
    backend: str,
    interpret: Any,
) -> tuple[tuple, jax.Array]:
    """Reads T tokens of every row and head.

    Args:
      memory: the four choices; `dispatch.check` has taken it.
      initial: A_0 by layer, `[H, inputs, outputs]`.
      held: weights, momentum, start and optimizer of the state, leaves `[B, H, ...]`.
      q, k, v: `[B, T, H, n]`, float32 or bfloat16.
      gates: by name, `[B, T, H]` or `[B, T, H, n]`.
      reset: bool `[B, T]`, where documents begin, or None.
      phase: int32 `[B]`, tokens of the current chunk read before; None is 0.
      backend: "tpu" or "gpu".
      interpret: as `dispatch.Settings` has it.

    Returns:
      `held` after the last token, and `y [B, T, H, V]` in the dtype of v.
    """
    driver = _driver(backend)
    marks = {} if reset is None else {"reset": reset.astype(jnp.int32)}
    options = {"value_dim": v.shape[3], "dtype": v.dtype, "interpret": interpret}
    if q.shape[1] == 1:
        return _decode(driver, memory, initial, held, q, k, v, gates, marks, phase, options)
    precision = "bfloat16" if v.dtype == jnp.bfloat16 else "highest"
    if memory.exact:
        step, chunk = linear_step(memory, precision, backend), linear_chunk(backend, q.shape[1])
        tokens, carry, consts = linear_tokens(memory, q, k, v, gates), held[0], {}
        tokens = {name: jnp.moveaxis(x, 2, 1) for name, x in tokens.items()}
        placed, offset = False, None
    else:
        chunk = memory.chunk_size
        tokens, consts = _columns(q, k, v, gates), dict(initial)
        placed = phase is not None or q.shape[1] % chunk > 0
        step, offset = DeepStep(memory, precision, placed), phase
        carry = {"weights": held[0]}
        carry |= {"momentum": held[1]} if held[1] else {}
        carry |= {"start": held[2] or held[0]} if placed else {}
    total = q.shape[1]
    room = total if offset is None else total + chunk - 1
    group = group_size(carry, tokens, chunk)
    while not placed and not memory.exact and total // chunk % group:
        group //= 2  # a row of whole chunks needs no marks
    size = chunk * group
    room = -(-room // size) * size
    if placed:
        marks["live"] = jnp.ones(q.shape[:2], jnp.int32)
    tokens = jax.tree.map(partial(_place, room=room, offset=offset, axis=2), tokens)
    marks = jax.tree.map(partial(_place, room=room, offset=offset, axis=1), marks)
    carry, y = driver.scan(
        step, carry, consts, tokens, marks, chunk_size=chunk, group=group, **options
    )
    y = jnp.moveaxis(_cut(y, total, offset), 1, 2)
    if memory.exact:
        return (carry, *held[1:]), y
    start = carry["start"] if placed else carry["weights"]
    return (carry["weights"], carry.get("momentum", {}), start, held[3]), y


def linear_chunk(backend: str, total: int) -> int:
    """A power of two: the back end's chunk, or for short rows what holds them."""
    return min(LINEAR_CHUNK[backend], max(SHORTEST_CHUNK, 1 << (total - 1).bit_length()))


def _driver(backend: str):
    # Imported where it is needed: each brings its own compiler.
    if backend == "tpu":
        from kernels_pallas import tpu as driver
    else:
        from kernels_pallas import gpu as driver
    return driver


def _columns(q, k, v, gates) -> dict[str, jax.Array]:
    """The tokens by name, `[B, H, T, n]`; gates per head are columns."""
    tokens = {"q": q, "k": k, "v": v, **gates}
    tokens = {name: x if x.ndim == 4 else x[..., None] for name, x in tokens.items()}
    return {name: jnp.moveaxis(x, 2, 1) for name, x in tokens.items()}


def _place(x: jax.Array, room: int, offset: jax.Array | None, axis: int) -> jax.Array:
    """x with `room` places along the axis, row b from place `offset[b]` on, zeros elsewhere."""
    if offset is None:
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, room - x.shape[axis])
        return jnp.pad(x, pad)

    def row(x, offset):
        shape = list(x.shape)
        shape[axis - 1] = room
        empty = jnp.zeros(shape, x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(empty, x, offset, axis - 1)

    return jax.vmap(row)(x, offset)


def _cut(y: jax.Array, total: int, offset: jax.Array | None) -> jax.Array:
    if offset is None:
        return y[:, :, :total]
    rows = jax.vmap(lambda y, offset: jax.lax.dynamic_slice_in_dim(y, offset, total, axis=1))
    return rows(y, offset)


def _decode(driver, memory, initial, held, q, k, v, gates, marks, phase, options):
    carry = {"weights": held[0], "momentum": held[1], "start": held[2]}
    carry = {name: tree for name, tree in carry.items() if tree}
    phase = jnp.zeros(q.shape[0], jnp.int32) if phase is None else phase
    marks = {**marks, "phase": phase[:, None]}
    tokens = _columns(q, k, v, gates)
    carry, y = driver.decode(TokenStep(memory), carry, dict(initial), tokens, marks, **options)
    held = (carry["weights"], carry.get("momentum", {}), carry.get("start", {}), held[3])
    return held, jnp.moveaxis(y, 1, 2)
