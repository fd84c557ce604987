"""The associative form: all chunks at once, their states by a scan of the chunks' maps.

A chunk of a linear memory with a dot-product or l2 bias maps its state affinely, `S' = P S + B`,
and such maps compose associatively. The dot product has a diagonal P, `rows * S * columns`, the
decay of the chunk. The delta rule has a matrix P `[K, K]`, which `chunk_step` gives when it reads
the identity: its rule is the same for every value channel, so that zeros and the identity pass as
K further channels beside the values. A document that begins in the chunk makes P = 0.

A sequence of n chunks takes log n steps one after the other instead of n, for more work: every
chunk is written twice, and the delta rule carries K further channels and multiplies 2 n matrices
`[K, K]`. Such maps also join the parts of a sequence that lie on several devices
(`memory/sharded.py`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from miras_jax.memory import layer as la
from miras_jax.memory.chunked import chunk_step, keep
from miras_jax.memory.compatibility import why_not_exact_gradients
from miras_jax.memory.head import Chunk, Head, inner_steps, marked
from miras_jax.memory.memory import Memory, Weights


def why_not_associative(memory: Memory) -> str:
    """Why a memory has no associative form; empty if it has one."""
    if reason := why_not_exact_gradients(memory):
        return f"its chunks do not map their state affinely: {reason}"
    if memory.read != "token":
        return f"its state holds the chunk's start: read={memory.read!r}"
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
) -> tuple[Head, jax.Array, None]:
    """Reads all chunks of one head side by side.

    Args:
      memory: the four choices; `why_not_associative` is empty.
      initial: A_0 by layer.
      head: the state before the first token.
      tokens: T tokens, any T, all live.
      phase: None, as an exact memory keeps no chunk grid.

    Returns:
      the state after the last token, `y [T, V]`, and None in the place of the recurrent form's
      diagnostics.
    """
    total = tokens.q.shape[0]
    chunks = _chunks(tokens, min(memory.chunk_size, total))
    head = head._replace(start={})

    # As in the chunked form, the backward pass keeps states and recomputes the chunks' insides.
    @partial(jax.checkpoint, prevent_cse=False, policy=keep)
    def chunk_map(chunk):
        return (_dense if memory.bias.curvature else _diagonal)(memory, initial, chunk)

    @partial(jax.checkpoint, prevent_cse=False, policy=keep)
    def read(weights, chunk):
        return chunk_step(memory, initial, Head(weights, {}, {}, {}), chunk, True)[1]

    before, last = states(jax.vmap(chunk_map)(chunks), head.weights)
    y = jax.vmap(read)(before, chunks)
    return head._replace(weights=last), y.reshape(-1, y.shape[-1])[:total], None


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


def states(maps: Maps, first: Weights) -> tuple[Weights, Weights]:
    """The states before each map, along the first axis, and after the last, from the first one."""

    def compose(first, then):
        return {name: then[name].after(f) for name, f in first.items()}

    until = jax.lax.associative_scan(compose, maps)
    after = {name: f(first[name]) for name, f in until.items()}
    before = {name: jnp.concatenate([first[name][None], s[:-1]]) for name, s in after.items()}
    return before, {name: s[-1] for name, s in after.items()}


def _after(memory: Memory, initial: Weights, weights: Weights, chunk: Chunk) -> Weights:
    """The accumulators that a chunk makes of given ones."""
    return chunk_step(memory, initial, Head(weights, {}, {}, {}), chunk, True)[0].weights


def _diagonal(memory: Memory, initial: Weights, chunk: Chunk) -> Maps:
    """A chunk's map of a memory whose writes do not see its state."""
    factors = decays(memory, chunk)
    zeros = {name: jnp.zeros_like(initial[name]) for name in factors}
    offset = _after(memory, initial, zeros, chunk)
    return {name: Diagonal(*factors[name], offset[name]) for name in factors}


def decays(memory: Memory, chunk: Chunk) -> dict[str, tuple[jax.Array, jax.Array]]:
    """What tokens leave of the state before them: a layer's `rows` and `columns` of `Diagonal`."""
    algorithm, dtype = memory.algorithm, chunk.q.dtype
    inner, _ = inner_steps(algorithm, chunk)
    live = jnp.ones(inner.q.shape[0], bool) if inner.live is None else inner.live
    specs = {**memory.retention.gates, **algorithm.gates}
    stays = jnp.where(marked(chunk.reset), jnp.zeros((), dtype), 1.0)
    factors = {}
    for name, layer in memory.written(chunk.k.shape[-1], chunk.v.shape[-1]).items():
        gates = la.layer_gates(
            layer, algorithm.step_gate(name), specs, inner.gates, live[:, None], dtype
        )
        columns = stays * jnp.exp(jnp.sum(gates.decay_out, axis=0, keepdims=True))
        rows = jnp.ones((1, 1), dtype)
        if gates.decay_in is not None:
            rows = jnp.exp(jnp.sum(gates.decay_in, axis=0, keepdims=True)).T
        factors[name] = rows, columns
    return factors


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
