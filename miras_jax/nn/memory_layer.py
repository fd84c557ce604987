"""The memory layer: projections, short convolutions, gates, the memory, output norm and gate.

The layer knows no model by name: the memory says which gates it needs, the row of the zoo which
parts stand round it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from miras_jax.memory import AttentionState, Parameters, State, memorize
from miras_jax.nn import partition
from miras_jax.nn.config import ModelConfig
from miras_jax.nn.layers import ShortConvolution, gate_projections, linear, rotate, unit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerState:
    """What a layer holds between two calls.

    Attributes:
      convolution: the last inputs of the convolutions of q, k and v, `[B, width - 1, H K]` each;
        empty without convolution.
      memory: the memory's state.
    """

    convolution: dict[str, jax.Array]
    memory: State | AttentionState


@dataclasses.dataclass(frozen=True)
class Context:
    """Where the tokens of a call stand, the same for every layer.

    Attributes:
      positions: int `[B, T]`, counted from the start of each document.
      segment_ids: int `[B, T]`, or None for one document.
      document: int `[B, T]`, documents counted from the one of the state; None as above.
    """

    positions: jax.Array
    segment_ids: jax.Array | None
    document: jax.Array | None


class MemoryLayer(nnx.Module):
    """Mixes the sequence through H memories of width dim / H."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dim, heads, width = config.dim, config.heads, config.head_dim
        dtype = jnp.dtype(config.dtype)
        self.config, self.memory = config, config.build_memory()
        self.query = linear(dim, dim, rngs, dtype)
        self.key = linear(dim, dim, rngs, dtype)
        self.value = linear(dim, dim, rngs, dtype)
        self.output = linear(dim, dim, rngs, dtype, scale=(2 * config.depth) ** -0.5)
        if config.layer.convolution:
            self.convolutions = nnx.Dict(
                {name: ShortConvolution(dim, rngs=rngs) for name in ("query", "key", "value")}
            )
        self.gates = gate_projections(self.memory.gates, dim, heads, width, config.gate_rank, rngs)
        start = self.memory.init(rngs.params(), heads=heads, key_dim=width, value_dim=width)
        self.start = nnx.Dict({name: nnx.Param(w) for name, w in start.weights.items()})
        if config.layer.output_norm:
            self.output_norm = nnx.RMSNorm(width, dtype=dtype, rngs=rngs)
        if config.layer.output_gate:
            self.output_gate = linear(dim, dim, rngs, dtype)

    @property
    def parameters(self) -> Parameters:
        """The memory's learned start, as `memorize` takes it."""
        weights = {name: w[...] for name, w in self.start.items()}
        width = self.config.head_dim
        return Parameters(weights, self.config.heads, width, width)

    def __call__(
        self, x: jax.Array, state: LayerState | None, context: Context
    ) -> tuple[jax.Array, LayerState]:
        """x `[B, T, dim]` to `[B, T, dim]`, and the state after the last token."""
        options = self.config.layer
        qkv = {"query": self.query(x), "key": self.key(x), "value": self.value(x)}
        convolved = {}
        if options.convolution:
            for name, convolution in self.convolutions.items():
                before = None if state is None else state.convolution[name]
                qkv[name], convolved[name] = convolution(qkv[name], before, context.document)
        q, k, v = (z.reshape(*z.shape[:2], self.config.heads, -1) for z in qkv.values())
        if options.normalize:
            q, k = unit(q), unit(k)
        if options.rotary:
            q, k = (rotate(z, context.positions, self.config.rotary_base) for z in (q, k))
        if options.scale_query:
            q = q * self.config.head_dim**-0.5
        gates = {name: projection(x) for name, projection in self.gates.items()}
        y, memory = self._memorize(q, k, v, gates, state, context.segment_ids)
        if options.output_norm:
            y = self.output_norm(y)
        y = y.reshape(x.shape)
        if options.output_gate:
            y = y * jax.nn.silu(self.output_gate(x))
        return self.output(y), LayerState(convolved, memory)

    def _memorize(self, q, k, v, gates, state, segment_ids):
        """`memorize`, each shard of the mesh with its own rows and heads."""

        def run(parameters, q, k, v, gates, memory, segment_ids):
            heads = dataclasses.replace(parameters, heads=q.shape[2])
            return memorize(
                self.memory, heads, q, k, v, gates, state=memory, segment_ids=segment_ids
            )

        args = (self.parameters, q, k, v, gates, state and state.memory, segment_ids)
        if jax.sharding.get_abstract_mesh().empty:
            return run(*args)
        _, after = jax.eval_shape(run, *args)
        tokens = P(partition.BATCH, None, "tensor")
        in_specs = (
            P("tensor"),
            *(tokens, tokens, tokens, tokens),
            _state_specs(args[5]),
            P(partition.BATCH),
        )
        return jax.shard_map(
            run, in_specs=in_specs, out_specs=(tokens, _state_specs(after)), check_vma=False
        )(*args)


def _state_specs(state: State | AttentionState | None):
    """Rows over the batch axes, heads over `tensor`."""
    if state is None:
        return None
    rows = P(partition.BATCH)
    if isinstance(state, AttentionState):
        pairs = P(partition.BATCH, None, "tensor")
        return dataclasses.replace(
            state,
            keys=pairs,
            values=pairs,
            document=rows,
            length=P(),
            last_document=rows,
            segment=rows,
        )
    heads = P(partition.BATCH, "tensor")
    weights, momentum, start = (
        jax.tree.map(lambda _: heads, tree) for tree in (state.weights, state.momentum, state.start)
    )
    return State(weights, momentum, start, phase=rows, segment=rows)
