"""The language model: embedding, pre-norm blocks of a memory layer and a SwiGLU, output layer."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from miras_jax.memory import Attention
from miras_jax.memory.segments import document_starts
from miras_jax.nn import partition
from miras_jax.nn.config import ModelConfig
from miras_jax.nn.layers import SwiGLU, linear
from miras_jax.nn.memory_layer import Context, LayerState, MemoryLayer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelState:
    """What a model holds between two calls; of constant size but for attention.

    Attributes:
      layers: the states of all layers, stacked: leaves `[depth, ...]`.
      position: int32 `[B]`, tokens read of the current document.
      segment: int32 `[B]`, the last segment id; -1 before any.
    """

    layers: LayerState
    position: jax.Array
    segment: jax.Array


class Block(nnx.Module):
    """`x + memory(norm(x))`, then `x + swiglu(norm(x))`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.memory_norm = nnx.RMSNorm(config.dim, dtype=dtype, rngs=rngs)
        self.memory = MemoryLayer(config, rngs=rngs)
        self.swiglu_norm = nnx.RMSNorm(config.dim, dtype=dtype, rngs=rngs)
        self.swiglu = SwiGLU(
            config.dim, config.hidden_dim, depth=config.depth, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, x: jax.Array, state: LayerState | None, context: Context
    ) -> tuple[jax.Array, LayerState]:
        y, state = self.memory(self.memory_norm(x), state, context)
        x = x + y
        return x + self.swiglu(self.swiglu_norm(x)), state


class LanguageModel(nnx.Module):
    """Next-token logits from tokens.

    Every leaf is an `nnx.Param`, so the module itself is the pytree that is trained, saved and
    sharded. Blocks are stacked `[depth, ...]` and scanned.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        embedding = 0.02 * jax.random.normal(rngs.params(), (config.vocab_size, config.dim))
        self.embedding = nnx.Param(embedding)
        keys = jax.random.split(rngs.params(), config.depth)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
        self.final_norm = nnx.RMSNorm(config.dim, dtype=jnp.dtype(config.dtype), rngs=rngs)
        if not config.tie_embeddings:
            self.head = linear(config.dim, config.vocab_size, rngs, jnp.dtype(config.dtype))

    def init_state(self, batch: int, capacity: int | None = None) -> ModelState:
        """The state before the first token of `batch` rows. `capacity` is the number of tokens
        that will be read in all; only attention asks for it."""
        config = self.config
        layer = jax.tree.map(lambda x: x[0], self.blocks).memory
        dtype = jnp.dtype(config.dtype)
        options = {"capacity": capacity} if isinstance(layer.memory, Attention) else {}
        convolution = {}
        if config.layer.convolution:
            convolution = {
                name: jnp.zeros((batch, c.width - 1, config.dim), dtype)
                for name, c in layer.convolutions.items()
            }

        def of_layer(block: Block) -> LayerState:
            memory = block.memory.memory.init_state(block.memory.parameters, batch=batch, **options)
            return LayerState(convolution, memory)

        return ModelState(
            layers=jax.vmap(of_layer)(self.blocks),
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
          segment_ids: int `[B, T]`, non-decreasing in a row, the documents of a packed row; a
            packed document gets the logits it gets alone. None goes on with the state's.

        Returns:
          logits float32 `[B, T, vocab_size]`, and the state after the last token.
        """
        batch, total = tokens.shape
        position = jnp.zeros(batch, jnp.int32) if state is None else state.position
        segment = jnp.full(batch, -1, jnp.int32) if state is None else state.segment
        resets, segment = document_starts(segment_ids, segment)
        context = _context(position, total, segment_ids, resets)
        dtype = jnp.dtype(self.config.dtype)

        def block(x, layer):
            weights, before = layer
            x, after = partition.gather(weights)(x, before, context)
            return partition.constrain(x, partition.BATCH), after

        if self.config.remat:
            block = jax.checkpoint(block, prevent_cse=False)
        embedding = partition.gather({"embedding": self.embedding[...]})["embedding"]
        x = embedding[tokens].astype(dtype)
        x = partition.constrain(x, partition.BATCH)
        x, layers = jax.lax.scan(block, x, (self.blocks, state and state.layers))
        x = self.final_norm(x)
        if self.config.tie_embeddings:
            output = embedding.T
        else:
            output = partition.gather({"head": self.head})["head"].kernel[...]
        logits = jnp.matmul(x, output.astype(dtype), preferred_element_type=jnp.float32)
        return logits, ModelState(layers, context.positions[:, -1] + 1, segment)


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
