"""The associative form: all chunks at once, their states by a scan of the chunks' maps.

A chunk of a linear memory with a dot-product or l2 bias maps its state affinely, `S' = P S + B`,
and such maps compose associatively. The dot product has a diagonal P, `rows * S * columns`, the
decay of the chunk. The delta rule has a matrix P `[K, K]`, which `chunk_step` gives when it reads
the identity: its rule is the same for every value channel, so that zeros and the identity pass as
K further channels beside the values. A document that begins in the chunk makes P = 0.

A sequence of n chunks takes log n steps one after the other instead of n, for more work: every
chunk is written twice, and the delta rule carries K further channels and multiplies 2 n matrices
`[K, K]`. The same maps join the parts of a sequence that lie on several devices
(`memory/sharded.py`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from miras_jax.memory import layer as la
from miras_jax.memory.chunked import chunk_step, keep
from miras_jax.memory.compatibility import why_not_exact
from miras_jax.memory.head import Chunk, Head, inner_steps, marked
from miras_jax.memory.memory import Memory, Weights


def why_not_associative(memory: Memory) -> str:
    """Why a memory has no associative form; empty if it has one."""
    if reason := why_not_exact(memory):
        return f"its chunks do not map their state affinely: {reason}"
    if "momentum" in memory.algorithm.gates:
        return "the form carries one accumulator, and a momentum is a second one"
    if "chunked" not in memory.forms:
        return "it has no chunks"
    return ""


class Diagonal(NamedTuple):
    """`S' = rows * S * columns + offset`; leaves `[..., K or 1, 1]`, `[..., 1, V or 1]` and
    `[..., K, V]`."""

    rows: jax.Array
    columns: jax.Array
    offset: jax.Array

    def __call__(self, state: jax.Array) -> jax.Array:
        return self.rows * state * self.columns + self.offset

    def after(self, first: "Diagonal") -> "Diagonal":
        """Both maps, `first` first."""
        return Diagonal(self.rows * first.rows, self.columns * first.columns, self(first.offset))


class Dense(NamedTuple):
    """`S' = matrix S + offset`; leaves `[..., K, K]` and `[..., K, V]`."""

    matrix: jax.Array
    offset: jax.Array

    def __call__(self, state: jax.Array) -> jax.Array:
        return self.matrix @ state + self.offset

    def after(self, first: "Dense") -> "Dense":
        """Both maps, `first` first."""
        return Dense(self.matrix @ first.matrix, self(first.offset))


Maps = dict[str, Diagonal | Dense]


def associative(
    memory: Memory,
    initial: Weights,
    head: Head,
    tokens: Chunk,
    phase: None = None,
    axis: str | None = None,
) -> tuple[Head, jax.Array, None]:
    """Reads all chunks of one head side by side.

    Args:
      memory: the four choices; `why_not_associative` is empty.
      initial: A_0 by layer.
      head: the state before the first token, of the whole sequence if it lies on several devices.
      tokens: T tokens, any T, all live; on several devices this device's.
      phase: None, as an exact memory keeps no chunk grid.
      axis: the mesh axis over which the sequence lies in contiguous parts of T tokens; None is one
        device.

    Returns:
      the state after the last token, of the whole sequence, `y [T, V]`, and None in the place of
      the recurrent form's diagnostics.
    """
    total = tokens.q.shape[0]
    chunks = _chunks(tokens, min(memory.chunk_size, total))
    first = head = head._replace(start={})

    # As in the chunked form, the backward pass keeps states and recomputes the chunks' insides.
    @partial(jax.checkpoint, prevent_cse=False, policy=keep)
    def chunk_map(chunk):
        return (_dense if memory.bias.curvature else _diagonal)(memory, initial, chunk)

    @partial(jax.checkpoint, prevent_cse=False, policy=keep)
    def read(weights, chunk):
        return chunk_step(memory, initial, Head(weights, {}, {}, {}), chunk, True)[1]

    until = _scan(jax.vmap(chunk_map)(chunks))
    if axis is not None:
        first, head = _across(until, head, axis)
    after = {name: f(first.weights[name]) for name, f in until.items()}
    if axis is None:
        head = head._replace(weights={name: s[-1] for name, s in after.items()})
    before = {name: _shifted(first.weights[name], s) for name, s in after.items()}
    y = jax.vmap(read)(before, chunks)
    return head, y.reshape(-1, y.shape[-1])[:total], None


def _chunks(tokens: Chunk, size: int) -> Chunk:
    """The tokens `[n, size, ...]`, the last chunk filled up with tokens that do not live."""
    total = tokens.q.shape[0]
    count = -(-total // size)
    pad = count * size - total
    if pad:
        tokens = tokens._replace(live=jnp.ones(total, bool))
        tokens = jax.tree.map(
            lambda x: jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)),
            tokens,
        )
    return jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), tokens)


def _scan(maps: Maps) -> Maps:
    """The maps from before the first to after each, along the first axis."""

    def compose(first, then):
        return {name: then[name].after(f) for name, f in first.items()}

    return jax.lax.associative_scan(compose, maps)


def _shifted(first: jax.Array, after: jax.Array) -> jax.Array:
    """The states before each map, of those after."""
    return jnp.concatenate([first[None], after[:-1]])


def _across(until: Maps, head: Head, axis: str) -> tuple[Head, Head]:
    """The states before this device's tokens and after all tokens.

    Every device gets the maps of all, at most K (K + V) numbers each whatever T, and composes them:
    one exchange. A scan by pairs of devices would send log n maps instead of n - 1, but one round
    after the other, and one more for the final state, which all devices hold.
    """
    whole = jax.tree.map(lambda x: x[-1], until)
    maps = _scan(jax.lax.all_gather(whole, axis))
    after = {name: f(head.weights[name]) for name, f in maps.items()}
    here = jax.lax.axis_index(axis)
    before = {name: _shifted(head.weights[name], s)[here] for name, s in after.items()}
    last = {name: s[-1] for name, s in after.items()}
    return head._replace(weights=before), head._replace(weights=last)


def _after(memory: Memory, initial: Weights, weights: Weights, chunk: Chunk) -> Weights:
    """The accumulators that a chunk makes of given ones."""
    return chunk_step(memory, initial, Head(weights, {}, {}, {}), chunk, True)[0].weights


def _diagonal(memory: Memory, initial: Weights, chunk: Chunk) -> Maps:
    """A chunk's map of a memory whose writes do not see its state."""
    algorithm = memory.algorithm
    written = memory.written(chunk.k.shape[-1], chunk.v.shape[-1])
    zeros = {name: jnp.zeros_like(initial[name]) for name in written}
    offset = _after(memory, initial, zeros, chunk)

    dtype = chunk.q.dtype
    inner, _ = inner_steps(algorithm, chunk)
    live = jnp.ones(inner.q.shape[0], bool) if inner.live is None else inner.live
    specs = {**memory.retention.gates, **algorithm.gates}
    stays = jnp.where(marked(chunk.reset), jnp.zeros((), dtype), 1.0)
    maps = {}
    for name, layer in written.items():
        gates = la.layer_gates(
            layer, algorithm.step_gate(name), specs, inner.gates, live[:, None], dtype
        )
        columns = stays * jnp.exp(jnp.sum(gates.decay_out, axis=0, keepdims=True))
        rows = jnp.ones((1, 1), dtype)
        if gates.decay_in is not None:
            rows = jnp.exp(jnp.sum(gates.decay_in, axis=0, keepdims=True)).T
        maps[name] = Diagonal(rows, columns, offset[name])
    return maps


def _dense(memory: Memory, initial: Weights, chunk: Chunk) -> Maps:
    """A chunk's map of a memory whose writes see its state, by reading zero and the identity."""
    ((name, layer),) = memory.written(chunk.k.shape[-1], chunk.v.shape[-1]).items()
    size, width = layer.inputs, layer.outputs

    def widened(x):
        return jnp.pad(x, ((0, 0), (0, size)))

    # What is per value channel here are further values and their factors.
    per_value = {n for n, gate in memory.gates.items() if gate.per == "value"}
    gates = {n: widened(x) if n in per_value else x for n, x in chunk.gates.items()}
    chunk = chunk._replace(v=widened(chunk.v), gates=gates)
    initial = {**initial, name: widened(initial[name])}
    start = {name: jnp.eye(size, width + size, width, chunk.q.dtype)}
    end = _after(memory, initial, start, chunk)[name]
    return {name: Dense(end[:, width:], end[:, :width])}
