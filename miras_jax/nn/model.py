"""The language model: embedding, pre-norm blocks that mix the tokens and a SwiGLU, output layer."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from miras_jax.memory import Diagnostics, Memory
from miras_jax.memory.segments import document_starts
from miras_jax.nn import partition
from miras_jax.nn.config import ModelConfig
from miras_jax.nn.layers import SwiGLU, linear
from miras_jax.nn.memory_layer import Context, LayerState, MemoryLayer
from miras_jax.nn.readout import RowReadout
from miras_jax.nn.titans import MemoryAsContext, MemoryAsGate, PairState, SegmentState

MixerState = LayerState | PairState | SegmentState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelState:
    """What a model holds between two calls; of constant size but for attention.

    Attributes:
      layers: the states of all blocks, stacked: leaves `[depth, ...]`, of pairs in a hybrid.
      position: int32 `[B]`, tokens read of the current document.
      segment: int32 `[B]`, the last segment id; -1 before any.
    """

    layers: MixerState
    position: jax.Array
    segment: jax.Array


class Block(nnx.Module):
    """`x + memory(norm(x))`, then `x + swiglu(norm(x))`, the latter if `feed_forward`."""

    def __init__(self, config: ModelConfig, *, feed_forward: bool = True, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        mixers = {"mag": MemoryAsGate, "mac": MemoryAsContext}
        self.memory_norm = nnx.RMSNorm(config.dim, dtype=dtype, rngs=rngs)
        self.memory = mixers.get(config.block, MemoryLayer)(config, rngs=rngs)
        self.feed_forward = feed_forward
        if feed_forward:
            self.swiglu_norm = nnx.RMSNorm(config.dim, dtype=dtype, rngs=rngs)
            self.swiglu = SwiGLU(
                config.dim, config.hidden_dim, depth=config.depth, dtype=dtype, rngs=rngs
            )

    def init_state(self, batch: int, capacity: int | None) -> MixerState:
        """The state before the first token."""
        return self.memory.init_state(batch, capacity)

    def __call__(
        self, x: jax.Array, state: MixerState | None, context: Context
    ) -> tuple[jax.Array, MixerState]:
        y, state = self.memory(self.memory_norm(x), state, context)
        x = x + y
        if self.feed_forward:
            x = x + self.swiglu(self.swiglu_norm(x))
        return x, state


class PairOfBlocks(nnx.Module):
    """A block of the memory, then one of sliding-window attention.

    The first has a SwiGLU in a hybrid, where the two are blocks of their own, but not in Titans'
    memory as a layer, where they are one.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.hybrid = config.block == "hybrid"
        self.memory = Block(config, feed_forward=self.hybrid, rngs=rngs)
        self.attention = Block(config.attention, rngs=rngs)

    def init_state(self, batch: int, capacity: int | None) -> PairState:
        """The state before the first token."""
        return PairState(*(x.init_state(batch, capacity) for x in (self.memory, self.attention)))

    def __call__(
        self, x: jax.Array, state: PairState | None, context: Context
    ) -> tuple[jax.Array, PairState]:
        first = context.layer * 2 if self.hybrid else context.layer
        second = first + 1 if self.hybrid else first
        at = dataclasses.replace
        x, memory = self.memory(x, state and state.memory, at(context, layer=first))
        x, attention = self.attention(x, state and state.attention, at(context, layer=second))
        return x, PairState(memory, attention)


class LanguageModel(nnx.Module):
    """Next-token logits from tokens.

    Every leaf is an `nnx.Param`, so the module itself is the pytree that is trained, saved and
    sharded. Blocks are stacked `[depth, ...]` and scanned; a hybrid's in pairs.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        embedding = 0.02 * jax.random.normal(rngs.params(), (config.vocab_size, config.dim))
        self.embedding = nnx.Param(embedding)
        kind = PairOfBlocks if config.block in ("hybrid", "mal") else Block
        stacked = config.depth // 2 if config.block == "hybrid" else config.depth
        keys = jax.random.split(rngs.params(), stacked)
        self.blocks = jax.vmap(lambda key: kind(config, rngs=nnx.Rngs(key)))(keys)
        self.final_norm = nnx.RMSNorm(config.dim, dtype=jnp.dtype(config.dtype), rngs=rngs)
        if not config.tie_embeddings:
            self.head = linear(config.dim, config.vocab_size, rngs, jnp.dtype(config.dtype))
        if config.readout == "last":
            self.readout = RowReadout(config.dim, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def init_state(self, batch: int, capacity: int | None = None) -> ModelState:
        """The state before the first token of `batch` rows. `capacity` is the number of tokens
        that will be read in all; only attention asks for it."""
        return ModelState(
            layers=jax.vmap(lambda block: block.init_state(batch, capacity))(self.blocks),
            position=jnp.zeros(batch, jnp.int32),
            segment=jnp.full(batch, -1, jnp.int32),
        )

    def __call__(
        self,
        tokens: jax.Array,
        state: ModelState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, ModelState]:
        """Reads tokens and predicts the next ones.

        Args:
          tokens: int `[B, T]`, ids below `vocab_size`.
          state: what was read before; None begins anew.
          segment_ids: int `[B, T]`, non-decreasing in a row, the documents of a packed row, none of
            which sees another; None goes on with the state's. A packed document gets the logits it
            gets alone if it begins on the row's grid of chunks (which an exact memory has not)
            and, in `titans_mac`, of segments.

        Returns:
          logits float32 `[B, T, vocab_size]`, of the tokens that follow or, with a readout of the
          last token, of those that were read in this call; and the state after the last token.
        """
        embedding = partition.gather({"embedding": self.embedding[...]})["embedding"]
        x, state = self._mix(embedding, tokens, state, segment_ids)
        x = self.final_norm(x)
        if self.config.readout == "last":
            x = partition.gather({"readout": self.readout})["readout"](x)
        if self.config.tie_embeddings:
            output = embedding.T
        else:
            output = partition.gather({"head": self.head})["head"].kernel[...]
        logits = jnp.matmul(x, output.astype(x.dtype), preferred_element_type=jnp.float32)
        if axis := partition.sequence(tokens.shape[1]):
            logits = partition.constrain(logits, partition.BATCH, axis, P.UNCONSTRAINED)
        return logits, state

    def diagnose(
        self,
        tokens: jax.Array,
        state: ModelState | None = None,
        segment_ids: jax.Array | None = None,
    ) -> Diagnostics:
        """What the inner loops of all memories do while they read; the arguments as in a call.

        Reads token by token (the recurrent form), which takes longer than a call; the memories are
        the same up to rounding. On a mesh B must be a multiple of data x fsdp, as everywhere.

        Returns:
          arrays `[layers, B, T, H]`, a layer for every block that has a memory with an inner loop.

        Raises:
          NotImplementedError: the model's memory is attention, which has none.
        """
        if not isinstance(self.config.build_memory(), Memory):
            raise NotImplementedError(
                f"{self.config.memory} keeps pairs and has no inner loop to diagnose; diagnose a "
                "model whose memory learns, such as yaad."
            )
        embedding = partition.gather({"embedding": self.embedding[...]})["embedding"]
        _, after = self._mix(embedding, tokens, state, segment_ids, diagnose=True)
        layers = after.layers
        while not isinstance(layers, LayerState):
            layers = layers.memory
        return layers.diagnostics

    def _mix(self, embedding, tokens, state, segment_ids, diagnose=False):
        """All blocks: the residual stream `[B, T, dim]` and the state after the last token."""
        batch, total = tokens.shape
        position = jnp.zeros(batch, jnp.int32) if state is None else state.position
        segment = jnp.full(batch, -1, jnp.int32) if state is None else state.segment
        resets, segment = document_starts(segment_ids, segment)
        context = _context(position, total, segment_ids, resets)
        context = dataclasses.replace(context, diagnose=diagnose)
        stream = (partition.BATCH, partition.sequence(total))

        def block(x, layer):
            weights, before, index = layer
            at = dataclasses.replace(context, layer=index)
            x, after = partition.gather(weights)(x, before, at)
            return partition.constrain(x, *stream), after

        if self.config.remat:
            block = jax.checkpoint(block, prevent_cse=False)
        x = embedding[tokens].astype(jnp.dtype(self.config.dtype))
        x = partition.constrain(x, *stream)
        indices = jnp.arange(len(jax.tree.leaves(self.blocks)[0]))
        x, layers = jax.lax.scan(block, x, (self.blocks, state and state.layers, indices))
        return x, ModelState(layers, context.positions[:, -1] + 1, segment)


def _context(
    position: jax.Array, total: int, segment_ids: jax.Array | None, resets: jax.Array | None
) -> Context:
    """Positions and documents of the tokens, from the state's position `[B]` and the resets."""
    index = jnp.arange(total)[None, :]
    if resets is None:
        return Context(position[:, None] + index, None, None)
    # Each token counts from its document's first token, or from the state's position before it.
    first = jax.lax.cummax(jnp.where(resets, index, -1), axis=1)
    positions = jnp.where(first < 0, position[:, None] + index, index - first)
    return Context(positions, segment_ids, jnp.cumsum(resets.astype(jnp.int32), axis=1))


def reconfigured(model: LanguageModel, **changes) -> LanguageModel:
    """A model with the same parameters and other fields of its configuration, such as
    `control="frozen"` or `chunk_size=4`.

    Raises:
      ValueError: the fields do not make a model, or one with other parameters.
    """
    config = dataclasses.replace(model.config, **changes)
    build = jax.eval_shape(lambda key: LanguageModel(config, rngs=nnx.Rngs(key)), jax.random.key(0))

    def shapes(model):
        found = jax.tree_util.tree_leaves_with_path(model)
        return [(jax.tree_util.keystr(path), x.shape) for path, x in found]

    if shapes(model) != shapes(build):
        raise ValueError(f"{changes} makes a model with other parameters: train it anew.")
    return jax.tree.unflatten(jax.tree.structure(build), jax.tree.leaves(model))
