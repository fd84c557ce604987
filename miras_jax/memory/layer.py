"""One layer of a memory inside a chunk: its gates, its outer products, its reads, its end.

Everything here is for one head and one row. A layer's memory after token t is

    A_t = anchor + carry_t D_start + fresh_t D_initial + momentum_carry_t S_start
          - sum_{i<=t} write[t,i] u_i d_i^T                               D = A - anchor

with the coefficients of `coefficients.py`, so that a read `x_t A_t` costs two small matrix
products and no token's memory is ever formed.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from miras_jax.memory.architecture import Layer
from miras_jax.memory.coefficients import Coefficients
from miras_jax.memory.gate import Gate

Axis = Literal["inputs", "outputs"]


class LayerGates(NamedTuple):
    """The gates as one layer takes them.

    Attributes:
      log_decay: `[C, n]`, n = 1 or the size of `axis`.
      axis: the axis of the weights on which the decay's channels lie.
      step_in: `[C, 1]` or `[C, inputs]`, factor of the layer's inputs.
      step_out: `[C, outputs]` factor of its cotangents, or None.
    """

    log_decay: jax.Array
    axis: Axis
    step_in: jax.Array
    step_out: jax.Array | None


def layer_gates(
    layer: Layer, specs: Mapping[str, Gate], gates: Mapping, live: jax.Array, dtype: jnp.dtype
) -> LayerGates:
    """Maps the memory's gates to one layer: channels where the layer has them, the mean of the
    channels elsewhere. Where no token lives the decay is 1 and the step 0."""
    live = live[:, None]

    def channels(name: str) -> tuple[jax.Array, Axis | None]:
        gate, value = specs[name], gates[name]
        if gate.per == "head":
            return value[:, None], None
        if gate.per == "key" and layer.reads_key:
            return value, "inputs"
        if gate.per == "value" and layer.writes_value:
            return value, "outputs"
        return jnp.mean(value, axis=-1, keepdims=True), None

    log_decay, decay_axis = jnp.zeros((live.shape[0], 1), dtype), None
    if "log_decay" in specs:
        log_decay, decay_axis = channels("log_decay")
        log_decay = jnp.where(live, log_decay, 0.0)
    step, step_axis = jnp.ones((live.shape[0], 1), dtype), None
    if "step" in specs:
        step, step_axis = channels("step")
    step = jnp.where(live, step, 0.0)
    if step_axis == "outputs":
        return LayerGates(log_decay, decay_axis or "outputs", live.astype(dtype), step)
    return LayerGates(log_decay, decay_axis or "outputs", step, None)


class LayerMemory(NamedTuple):
    """What a layer's memory is made of at the start of a chunk, each `[inputs, outputs]`.

    Attributes:
      start: the running accumulator A.
      initial: A_0, taken up by documents that begin inside the chunk.
      anchor: what A decays to; None is zero.
      momentum: S; None without momentum.
    """

    start: jax.Array
    initial: jax.Array
    anchor: jax.Array | None
    momentum: jax.Array | None


def _sum_of_starts(
    apply: Callable[[jax.Array, jax.Array], jax.Array],
    memory: LayerMemory,
    c: Coefficients,
    packed: bool,
) -> jax.Array:
    """`carry D_start + fresh D_initial + momentum_carry S_start` under `apply(coefficient, M)`."""
    anchor = 0.0 if memory.anchor is None else memory.anchor
    total = apply(c.carry, memory.start - anchor)
    if packed and memory.anchor is None:
        total += apply(c.fresh, memory.initial)
    if memory.momentum is not None:
        total += apply(c.momentum_carry, memory.momentum)
    return total


def read_start(
    x: jax.Array, memory: LayerMemory, c: Coefficients, axis: Axis, packed: bool
) -> jax.Array:
    """`x_t A_t` `[C, outputs]` without the chunk's own writes, for x `[C, inputs]`."""

    def apply(coefficient, matrix):
        if axis == "inputs":
            return (x * coefficient) @ matrix
        return coefficient * (x @ matrix)

    y = _sum_of_starts(apply, memory, c, packed)
    return y if memory.anchor is None else y + x @ memory.anchor


def scores(x: jax.Array, u: jax.Array, write: jax.Array, axis: Axis) -> jax.Array:
    """`write[t,i] (x_t . u_i)`: `[C, C]`, or `[C, C, outputs]` for a decay per output."""
    if write.shape[-1] == 1:
        return (x @ u.T) * write[..., 0]
    if axis == "inputs":
        return jnp.einsum("tc,ic,tic->ti", x, u, write)
    return (x @ u.T)[..., None] * write


def read_writes(
    x: jax.Array, u: jax.Array, d: jax.Array, write: jax.Array, axis: Axis
) -> jax.Array:
    """`sum_{i<=t} write[t,i] (x_t . u_i) d_i` `[C, outputs]`: the chunk's own writes, read."""
    s = scores(x, u, write, axis)
    return s @ d if s.ndim == 2 else jnp.einsum("tin,in->tn", s, d)


def end(
    u: jax.Array, d: jax.Array, memory: LayerMemory, c: Coefficients, axis: Axis, packed: bool
) -> jax.Array:
    """A after the chunk's last token, `[inputs, outputs]`."""
    last = jax.tree.map(lambda x: x[-1], c)

    def apply(coefficient, matrix):
        return matrix * (coefficient[:, None] if axis == "inputs" else coefficient)

    a = _sum_of_starts(apply, memory, last, packed)
    if memory.anchor is not None:
        a += memory.anchor
    if axis == "inputs" or last.write.shape[-1] == 1:
        return a - (u * last.write).T @ d
    return a - u.T @ (d * last.write)
