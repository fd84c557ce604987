"""One layer of a memory inside a chunk: its gates, its outer products, its reads, its end.

Everything here is for one head and one row. A layer's memory after token t is

    A_t = anchor + carry_t D_start + fresh_t D_initial + momentum_carry_t S_start
          - sum_{i<=t} write[t,i] u_i d_i^T                               D = A - anchor

with the coefficients of `coefficients.py`, so that a read `x_t A_t` costs two small matrix
products and no token's memory is ever formed.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from miras_jax.memory import coefficients as co
from miras_jax.memory.architecture import Layer, Linear
from miras_jax.memory.coefficients import Channels, Coefficients, Documents
from miras_jax.memory.gate import Gate
from miras_jax.memory.retention import Retention


class LayerGates(NamedTuple):
    """The gates as one layer takes them.

    Attributes:
      decay_in: log decay per input `[C, inputs]`, or None.
      decay_out: log decay `[C, 1]`, or per output `[C, outputs]`.
      step_in: `[C, 1]` or `[C, inputs]`, factor of the layer's inputs.
      step_out: `[C, outputs]` factor of its cotangents, or None.
    """

    decay_in: jax.Array | None
    decay_out: jax.Array
    step_in: jax.Array
    step_out: jax.Array | None

    def decayed(self, d: jax.Array) -> jax.Array:
        """D `[inputs, outputs]` after one token; for gates of C = 1."""
        d = d * jnp.exp(self.decay_out)
        return d if self.decay_in is None else d * jnp.exp(self.decay_in).T

    def factors(self, u: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The outer product's factors with their steps."""
        if self.step_out is not None:
            d = d * jnp.tile(self.step_out, d.shape[1] // self.step_out.shape[1])
        return u * self.step_in, d


def layer_gates(
    layer: Layer,
    step_name: str,
    specs: Mapping[str, Gate],
    gates: Mapping,
    live: jax.Array,
    dtype: jnp.dtype,
) -> LayerGates:
    """Maps the memory's gates to one layer: channels where the layer has them, the mean of the
    channels elsewhere. Where no token lives (`live`, bool `[C, 1]`) the decay is 1, the step 0."""

    def channels(name: str) -> tuple[jax.Array, str | None]:
        gate, value = specs[name], gates[name]
        if gate.per == "head":
            return value[:, None], None
        has_inputs = layer.reads_key and layer.kind != "diagonal"
        if gate.per == "key" and has_inputs:
            return value, "inputs"
        if (gate.per == "value" and layer.writes_value) or (
            gate.per == "key" and layer.reads_key and layer.kind == "diagonal"
        ):
            return value, "outputs"
        return jnp.mean(value, axis=-1, keepdims=True), None

    decay_in, decay_out = None, jnp.zeros((live.shape[0], 1), dtype)
    for name in ("log_decay", "log_value_decay"):
        if name in specs:
            value, axis = channels(name)
            value = jnp.where(live, value, 0.0)
            if axis == "inputs":
                decay_in = value
            else:
                decay_out = decay_out + value
    step, axis = jnp.ones((live.shape[0], 1), dtype), None
    if step_name in specs:
        step, axis = channels(step_name)
    elif gates.get(step_name) is not None:
        step = gates[step_name][:, None]
    step = jnp.where(live, step, 0.0)
    if axis == "outputs":
        return LayerGates(decay_in, decay_out, live.astype(dtype), step)
    return LayerGates(decay_in, decay_out, step, None)


def formed(
    retention: Retention,
    layers: Mapping[str, Layer],
    initial: Mapping[str, jax.Array],
    weights: Mapping[str, jax.Array],
    scales: Mapping[str, jax.Array] | None = None,
) -> Linear:
    """The layers with their weights formed, for one head.

    Args:
      retention: whose link makes weights of accumulators.
      layers: all, those that are never written included.
      initial: A_0 by layer; of those their weights.
      weights: the accumulators to read.
      scales: accumulators at which the link was last renewed; None renews it.
    """

    def linear(name: str, x: jax.Array) -> jax.Array:
        layer, a0 = layers[name], initial[name]
        if layer.frozen:
            return layer.apply(x, a0)
        if scales is None:
            return layer.apply(x, retention.link(weights[name], a0, layer))
        return layer.apply(x, retention.within(weights[name], scales[name], a0, layer))

    return linear


class LayerCoefficients(NamedTuple):
    """A layer's coefficients: along its inputs where they decay apart, and over all else."""

    inputs: Coefficients | None
    outputs: Coefficients

    def before(self, reset: jax.Array | None) -> "LayerCoefficients":
        return LayerCoefficients(*(c and co.before(c, reset) for c in self))

    def before_write(self) -> "LayerCoefficients":
        return LayerCoefficients(*(c and co.before_write(c) for c in self))


def layer_coefficients(
    gates: LayerGates,
    docs: Documents,
    momentum: tuple[jax.Array, jax.Array] | None,
    nesterov: jax.Array | None,
) -> LayerCoefficients:
    """The coefficients of a layer. Decays along both axes multiply; a momentum then has no
    coefficients of this form (`memory.py` refuses it), so it goes with the one axis there is."""
    if gates.decay_in is None:
        return LayerCoefficients(None, co.coefficients(gates.decay_out, docs, momentum, nesterov))
    inputs = co.coefficients(gates.decay_in, docs, momentum, nesterov)
    return LayerCoefficients(inputs, co.coefficients(gates.decay_out, docs))


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

    def sum(
        self,
        apply: Callable[[jax.Array | None, jax.Array, jax.Array], jax.Array],
        c: LayerCoefficients,
        packed: bool,
    ) -> jax.Array:
        """`carry D_start + fresh D_initial + momentum_carry S_start` under `apply(coefficient of
        the inputs, coefficient of the outputs, M)`."""

        def part(name, matrix):
            return apply(c.inputs and getattr(c.inputs, name), getattr(c.outputs, name), matrix)

        anchor = 0.0 if self.anchor is None else self.anchor
        total = part("carry", self.start - anchor)
        if packed and self.anchor is None:
            total += part("fresh", self.initial)
        if self.momentum is not None:
            # The momentum goes with one axis alone; the other's decay is 1.
            axis = c.outputs if c.inputs is None else c.inputs
            ones = jnp.ones_like(c.outputs.carry)
            pair = (None, axis.momentum_carry) if c.inputs is None else (axis.momentum_carry, ones)
            total += apply(*pair, self.momentum)
        return total


def read_start(
    layer: Layer, x: jax.Array, memory: LayerMemory, c: LayerCoefficients, packed: bool
) -> jax.Array:
    """`x_t A_t` `[C, outputs]` without the chunk's own writes, for x `[C, inputs]`."""

    def apply(inputs, outputs, matrix):
        return outputs * layer.apply(x if inputs is None else x * inputs, matrix)

    y = memory.sum(apply, c, packed)
    return y if memory.anchor is None else y + layer.apply(x, memory.anchor)


def scores(x: jax.Array, u: jax.Array, c: LayerCoefficients) -> jax.Array:
    """`write[t,i] (x_t . u_i)` `[C, C]`, without decays per output."""
    pairs = c.outputs.write
    if c.inputs is None:
        s = x @ u.T
    elif isinstance(c.inputs.write, Channels):
        s = c.inputs.write.scores(x, u)
    else:
        s = jnp.einsum("tc,ic,tic->ti", x, u, c.inputs.write)
    return s if _per_output(pairs) else s * pairs


def _per_output(write: jax.Array | Channels) -> bool:
    return isinstance(write, Channels) or write.ndim == 3


def read_writes(
    layer: Layer, x: jax.Array, u: jax.Array, d: jax.Array, c: LayerCoefficients
) -> jax.Array:
    """`sum_{i<=t} write[t,i] (x_t . u_i) d_i` `[C, outputs]`: the chunk's own writes, read."""
    write = c.outputs.write
    if layer.kind == "diagonal":
        s, d = jnp.ones((x.shape[0],) * 2, x.dtype), u * d
        s = s if _per_output(write) else write
    else:
        s = scores(x, u, c)
    if isinstance(write, Channels):
        y = write.weigh(s, d)
    elif _per_output(write):
        y = jnp.einsum("ti,tin,in->tn", s, write, d)
    else:
        y = s @ d
    return x * y if layer.kind == "diagonal" else y


def end(
    layer: Layer,
    u: jax.Array,
    d: jax.Array,
    memory: LayerMemory,
    c: LayerCoefficients,
    packed: bool,
) -> jax.Array:
    """A after the chunk's last token, `[inputs, outputs]`."""

    def last(x):
        """Of the last token: coefficients of the memories as a row, of the writes as a column."""
        if x is None:
            return None
        if isinstance(x.write, Channels):
            write = x.write.last()
        else:
            write = x.write[-1:].T if x.write.ndim == 2 else x.write[-1]
        return Coefficients(x.carry[-1:], x.fresh[-1:], x.momentum_carry[-1:], write)

    final = LayerCoefficients(last(c.inputs), last(c.outputs))

    def apply(inputs, outputs, matrix):
        matrix = matrix * outputs
        return matrix if inputs is None else matrix * inputs.T

    a = memory.sum(apply, final, packed)
    if memory.anchor is not None:
        a += memory.anchor
    if final.inputs is not None:
        u = u * final.inputs.write
    return a - layer.outer(u, d * final.outputs.write)
