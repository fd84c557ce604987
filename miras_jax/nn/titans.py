"""Memory and attention in one layer, as in Titans (Behrouz et al., 2025, arXiv 2501.00663).

`MemoryAsGate` is the paper's MAG (section 4.2), `MemoryAsContext` its MAC (section 4.1); MAL is two
layers in sequence and needs no layer of its own. Where the paper leaves a choice, or departs from
what can generate token by token, here:

- Persistent tokens are learned pairs of keys and values per head, of no position, that attention
  always sees (what projections make of a learned token is such a pair; the paper's section 3.3 sees
  them so). The memory does not read them: its learned start says as much as a start that has read
  constant tokens.
- The gate o = y * M(.), "any non-linear gating" of outputs with learned scales, is
  `norm(y) * silu(norm(M(.)))` with a learned scale in either norm.
- In MAC a token sees what was recalled for the tokens up to itself, not for the later ones of its
  segment, so that no token sees a later one. What is recalled stands beside its token, at the same
  rotary position. Its query has a projection of its own, with SiLU and of unit norm like the keys,
  but without convolution.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from miras_jax.memory import Diagnostics, State
from miras_jax.memory.gate import unit
from miras_jax.nn import partition
from miras_jax.nn.config import ModelConfig
from miras_jax.nn.layers import linear
from miras_jax.nn.memory_layer import Context, LayerState, MemoryLayer
from miras_jax.nn.parallel import recall_on_mesh


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairState:
    """The states of a memory layer and of the attention layer beside or behind it."""

    memory: LayerState
    attention: LayerState


class Gating(nnx.Module):
    """`norm(y) * silu(norm(m))`; y's scale starts as small as an output projection of `depth`
    blocks makes it."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        small = nnx.initializers.constant((2 * config.depth) ** -0.5)
        self.attention_norm = nnx.RMSNorm(config.dim, dtype=dtype, scale_init=small, rngs=rngs)
        self.memory_norm = nnx.RMSNorm(config.dim, dtype=dtype, rngs=rngs)

    def __call__(self, y: jax.Array, m: jax.Array) -> jax.Array:
        return self.attention_norm(y) * jax.nn.silu(self.memory_norm(m))


class MemoryAsGate(nnx.Module):
    """Sliding-window attention, gated by a memory that reads the same tokens."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.memory = MemoryLayer(config, rngs=rngs)
        self.attention = MemoryLayer(config.attention, rngs=rngs)
        self.gating = Gating(config, rngs=rngs)

    def init_state(self, batch: int, capacity: int | None = None) -> PairState:
        """The state before the first token."""
        return PairState(*(x.init_state(batch, capacity) for x in (self.memory, self.attention)))

    def __call__(
        self, x: jax.Array, state: PairState | None, context: Context
    ) -> tuple[jax.Array, PairState]:
        """x `[B, T, dim]` to `[B, T, dim]`, and the state after the last token."""
        m, memory = self.memory(x, state and state.memory, context)
        y, attention = self.attention(x, state and state.attention, context)
        return self.gating(y, m), PairState(memory, attention)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegmentState:
    """What `MemoryAsContext` holds between two calls, which may lie anywhere in a segment.

    Attributes:
      memory: of the memory layer, after the last token.
      attention: of the attention layer, which holds the pairs of the running segment.
      start: the memory that the running segment recalls from: the one at its start, or the learned
        start in rows whose document begins inside it.
      place: int32 scalar, tokens read of the running segment, 0 .. segment - 1.
    """

    memory: LayerState
    attention: LayerState
    start: State
    place: jax.Array


class MemoryAsContext(nnx.Module):
    """Attention over a segment and what the memory recalls for it; the memory learns the outcome.

    The segments lie on the grid of the row, as the memory's chunks do. Attention takes the tokens
    [recalled for 0, 0, recalled for 1, 1 ..], a segment being to it a document of its own.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dim, dtype = config.dim, jnp.dtype(config.dtype)
        self.segment = config.segment_size
        self.memory = MemoryLayer(config, rngs=rngs)
        self.attention = MemoryLayer(config.attention, rngs=rngs)
        sizes = self.memory.parameters
        self.query = linear(dim, sizes.heads * sizes.key_dim, rngs, dtype)
        self.recalled_norm = nnx.RMSNorm(sizes.value_dim, dtype=dtype, rngs=rngs)
        self.output = linear(sizes.heads * sizes.value_dim, dim, rngs, dtype)
        self.learned_norm = nnx.RMSNorm(dim, dtype=dtype, rngs=rngs)
        self.gating = Gating(config, rngs=rngs)

    def init_state(self, batch: int, capacity: int | None = None) -> SegmentState:
        """The state before the first token."""
        return SegmentState(
            memory=self.memory.init_state(batch, capacity),
            attention=self.attention.init_state(batch, capacity),
            start=self._initial(batch),
            place=jnp.zeros((), jnp.int32),
        )

    def __call__(
        self, x: jax.Array, state: SegmentState | None, context: Context
    ) -> tuple[jax.Array, SegmentState]:
        """x `[B, T, dim]` to `[B, T, dim]`, and the state after the last token.

        Reads blocks that cross no border of segments. Without a state these are the segments; with
        one, blocks that divide both segment and call, or tokens where the call begins off their
        grid.
        """
        total = x.shape[1]
        if state is None:
            state = self.init_state(x.shape[0])
            return self._blocks(x, state, context, min(self.segment, total))
        size = math.gcd(self.segment, total)
        if size == 1:
            return self._blocks(x, state, context, 1)
        return jax.lax.cond(
            state.place % size == 0,
            lambda: self._blocks(x, state, context, size),
            lambda: self._blocks(x, state, context, 1),
        )

    def _blocks(self, x, state, context, size):
        """Blocks of `size` tokens one after the other, and a shorter last one."""
        batch, total = x.shape[:2]
        tokens = (x, context.positions, context.segment_ids, _resets(context.document))
        whole = total // size * size

        def block(state, tokens):
            y, state = self._block(*tokens, state, context)
            # Of the block alone: it goes out with y, not on to the next block.
            return _replace(state, None), (y, state.memory.diagnostics)

        # Blocks follow one another: over `sequence` lie the tokens of each, not the blocks.
        within = partition.sequence(size)

        def split(z):
            z = jnp.moveaxis(z[:, :whole].reshape(batch, -1, size, *z.shape[2:]), 1, 0)
            return partition.constrain(z, None, partition.BATCH, within)

        def join(z):
            z = partition.constrain(z, None, partition.BATCH, within)
            return jnp.moveaxis(z, 0, 1).reshape(batch, whole, *z.shape[3:])

        state, said = jax.lax.scan(block, state, jax.tree.map(split, tokens))
        said = jax.tree.map(join, said)
        if whole < total:
            state, rest = block(state, jax.tree.map(lambda z: z[:, whole:], tokens))
            said = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), said, rest)
        y, diagnostics = said
        return y, _replace(state, diagnostics)

    def _block(self, x, positions, segment_ids, resets, state, context):
        """Tokens within a segment: recall, attend, learn what attention gives."""
        batch, count, dim = x.shape
        h, start = self._recalled(x, resets, state)
        begins = state.place + jnp.arange(count)[None] == 0
        begins = jnp.broadcast_to(begins if resets is None else begins | resets, (batch, count))
        number = jnp.cumsum(begins.astype(jnp.int32), axis=1)
        pair = dataclasses.replace(
            context,
            positions=jnp.repeat(positions, 2, axis=1),
            segment_ids=jnp.repeat(state.attention.memory.segment[:, None] + number, 2, axis=1),
            document=jnp.repeat(number, 2, axis=1),
        )
        pairs = jnp.stack([h, x], axis=2).reshape(batch, 2 * count, dim)
        y, attention = self.attention(pairs, state.attention, pair)
        y = y.reshape(batch, count, 2, dim)[:, :, 1]
        own = dataclasses.replace(
            context,
            positions=positions,
            segment_ids=segment_ids,
            document=None if resets is None else jnp.cumsum(resets.astype(jnp.int32), axis=1),
        )
        m, memory = self.memory(self.learned_norm(y), state.memory, own)
        place = (state.place + count) % self.segment
        return self.gating(y, m), SegmentState(memory, attention, start, place)

    def _recalled(self, x, resets, state):
        """What the memory of the segment's start recalls for x, and that memory."""
        begins = state.place == 0
        start = jax.tree.map(
            lambda now, then: jnp.where(begins, now, then), state.memory.memory, state.start
        )
        q = self.query(x).reshape(*x.shape[:2], self.memory.parameters.heads, -1)
        q = unit(jax.nn.silu(q))
        memory = self.memory.memory, self.memory.parameters
        h = recall_on_mesh(*memory, start, q)
        if resets is not None:
            # A document that begins inside the segment recalls from the learned start.
            initial = self._initial(x.shape[0])
            begun = jnp.cumsum(resets, axis=1) > 0
            h = jnp.where(begun[..., None, None], recall_on_mesh(*memory, initial, q), h)
            start = jax.tree.map(
                lambda a, b: jnp.where(begun[:, -1].reshape(-1, *[1] * (a.ndim - 1)), a, b),
                initial,
                start,
            )
        h = self.recalled_norm(h)
        return self.output(h.reshape(*x.shape[:2], -1)), start

    def _initial(self, batch):
        return self.memory.memory.init_state(self.memory.parameters, batch=batch)


def _replace(state: SegmentState, diagnostics: Diagnostics | None) -> SegmentState:
    memory = dataclasses.replace(state.memory, diagnostics=diagnostics)
    return dataclasses.replace(state, memory=memory)


def _resets(document: jax.Array | None) -> jax.Array | None:
    """Where documents begin, bool `[B, T]`, from their numbers counted from the state's, 0."""
    return None if document is None else jnp.diff(document, axis=1, prepend=0) > 0
