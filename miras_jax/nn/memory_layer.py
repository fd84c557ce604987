"""The memory layer: projections, short convolutions, gates, the memory, output norm and gate.

The layer knows no model by name: the memory says which gates it needs, the row of the zoo which
parts stand round it and what the row's own functions make of them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from miras_jax.memory import (
    Attention,
    AttentionState,
    Diagnostics,
    Memory,
    Parameters,
    State,
)
from miras_jax.memory.gate import unit
from miras_jax.memory.window import WindowState
from miras_jax.nn import parallel
from miras_jax.nn.config import ModelConfig
from miras_jax.nn.controls import controlled
from miras_jax.nn.layers import (
    ACTIVATIONS,
    Constant,
    GateProjection,
    ShortConvolution,
    TokenShift,
    linear,
    rotate,
)
from miras_jax.zoo import Facts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerState:
    """What a layer holds between two calls.

    Attributes:
      convolution: the last inputs of each convolution by name, `[B, width - 1, channels]`, and of
        the token shift as "shift", `[B, 1, dim]`; empty without either.
      memory: the memory's state.
      diagnostics: what the inner loop did at the tokens of the call, `[B, T, H]`, where the context
        asked for it; the next call does not read it.
    """

    convolution: dict[str, jax.Array]
    memory: State | AttentionState | WindowState
    diagnostics: Diagnostics | None = None


@dataclasses.dataclass(frozen=True)
class Context:
    """Where the tokens of a call stand.

    Attributes:
      positions: int `[B, T]`, counted from the start of each document.
      segment_ids: int `[B, T]`, or None for one document.
      document: int `[B, T]`, documents counted from the one of the state; None as above.
      layer: int, the index of the layer that is called, 0 .. depth - 1.
      diagnose: memories with an inner loop also say what it did, in their layer's state; they run
        their recurrent form then.
    """

    positions: jax.Array
    segment_ids: jax.Array | None
    document: jax.Array | None
    layer: jax.Array | int = 0
    diagnose: bool = False


class MemoryLayer(nnx.Module):
    """Mixes the sequence through H memories from keys `[K]` to values `[V]`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dim, heads, options = config.dim, config.heads, config.layer
        dtype = jnp.dtype(config.dtype)
        channels = {"key": config.key_dim, "value": config.value_dim}
        keys, values = config.key_heads * config.key_dim, heads * config.value_dim
        self.config, self.memory = config, config.build_memory()
        self.query = linear(dim, keys, rngs, dtype)
        if not options.share_query_key:
            self.key = linear(dim, keys, rngs, dtype)
        self.value = linear(dim, values, rngs, dtype)
        self.output = linear(values, dim, rngs, dtype, scale=(2 * config.depth) ** -0.5)

        widths = {"query": keys, "key": keys, "value": values}
        inputs, gates, learned = {}, {}, {}
        for stream in config.streams:
            count = channels.get(stream.gate.per, 1)
            if stream.is_learned:
                size = getattr(self.memory, "chunk_size", 1)
                learned[stream.name] = Constant(stream, heads, count, size)
            elif stream.is_input:
                inputs[stream.name] = linear(dim, heads * count, rngs, dtype)
                widths[stream.name] = heads * count
            else:
                rank = config.gate_rank
                gates[stream.name] = GateProjection(stream, dim, heads, count, rank, rngs)
        self.inputs, self.gates, self.learned = nnx.Dict(inputs), nnx.Dict(gates), nnx.Dict(learned)
        if options.shift:
            readers = ("query", "key", "value", *inputs, *gates)
            self.shift = TokenShift((*readers, "gate") if options.output_gate else readers, dim)
        if options.convolution:
            self.convolutions = nnx.Dict(
                {
                    name: ShortConvolution(width, activation=options.activation, rngs=rngs)
                    for name, width in widths.items()
                    if name not in options.not_convolved
                }
            )

        start = self.memory.init(rngs.params(), heads=heads, **self._sizes).weights
        if options.start_std is not None:
            layers = self.memory.layers(**self._sizes)
            scales = {n: options.start_std / layer.std for n, layer in layers.items() if layer.std}
            start = {name: w * scales.get(name, 1.0) for name, w in start.items()}
        self.start = nnx.Dict({name: nnx.Param(w) for name, w in start.items()})
        if options.output_norm:
            norm = nnx.LayerNorm if options.norm == "layer" else nnx.RMSNorm
            self.output_norm = norm(config.value_dim, dtype=dtype, rngs=rngs)
        if options.output_gate:
            self.output_gate = linear(dim, values, rngs, dtype)

    @property
    def _sizes(self) -> dict[str, int]:
        return {"key_dim": self.config.key_dim, "value_dim": self.config.value_dim}

    @property
    def parameters(self) -> Parameters:
        """The memory's learned start, as `memorize` takes it."""
        weights = {name: w[...] for name, w in self.start.items()}
        return Parameters(weights, self.config.heads, **self._sizes)

    def init_state(self, batch: int, capacity: int | None = None) -> LayerState:
        """The state before the first token of `batch` rows. `capacity` is the number of tokens
        that will be read in all; only attention asks for it."""
        options, dtype = self.config.layer, jnp.dtype(self.config.dtype)
        before = {}
        if options.shift:
            before["shift"] = jnp.zeros((batch, 1, self.config.dim), dtype)
        if options.convolution:
            for name, convolution in self.convolutions.items():
                width, channels = convolution.kernel.shape
                before[name] = jnp.zeros((batch, width - 1, channels), dtype)
        slots = {"capacity": capacity} if isinstance(self.memory, Attention) else {}
        return LayerState(before, self.memory.init_state(self.parameters, batch=batch, **slots))

    def __call__(
        self, x: jax.Array, state: LayerState | None, context: Context
    ) -> tuple[jax.Array, LayerState]:
        """x `[B, T, dim]` to `[B, T, dim]`, and the state after the last token."""
        options = self.config.layer
        place = self._place(x, state)
        inputs, before = self._project(x, state, context, place)
        facts = Facts(self.config.heads, self.config.depth, context.layer, place)
        inputs = options.prepare(inputs, facts)
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        if options.normalize:
            q, k = unit(q), unit(k)
        if options.normalize_values:
            v = v.shape[-1] ** 0.5 * unit(v)
        if options.rotary:
            positions = place if options.rotary_within == "chunk" else context.positions
            q, k = (rotate(z, positions, self.config.rotary_base) for z in (q, k))
        if options.scale_query:
            q = q * self.config.key_dim**-0.5
        if missing := sorted(set(self.memory.gates) - set(inputs)):
            raise ValueError(
                f"The memory of {self.config.memory!r} needs the gates {', '.join(missing)}, which "
                "neither the streams of its row's layer nor its `prepare` give: name them there, "
                "or leave `streams` out to have the memory's own."
            )
        gates = {name: inputs[name] for name in self.memory.gates}
        q, k, v, gates = controlled(
            self.config.control, q, k, v, gates, context.positions, context.layer
        )
        y, memory, diagnostics = self._memorize(q, k, v, gates, state, context)
        norm = self.output_norm if options.output_norm else lambda y: y
        y = options.finish(y, inputs, norm)
        y = self.output(y.reshape(*x.shape[:2], -1))
        return y, LayerState(before, memory, diagnostics)

    def _place(self, x: jax.Array, state: LayerState | None) -> jax.Array:
        """Each token's place in its chunk `[B, T]`; the grid of chunks is the row's. An exact
        memory keeps no grid, and its configuration refuses what asks for one."""
        batch, total = x.shape[:2]
        phase = jnp.zeros(batch, jnp.int32)
        if state is not None and isinstance(state.memory, State):
            phase = state.memory.phase
        return (phase[:, None] + jnp.arange(total)) % getattr(self.memory, "chunk_size", 1)

    def _project(self, x, state, context, place):
        """What `prepare` gets, and what the next call needs of the last tokens."""
        options, heads = self.config.layer, self.config.heads
        before = {} if state is None else state.convolution
        of, after = {}, {}
        if options.shift:
            of, after["shift"] = self.shift(x, before.get("shift"), context.document)
        query, key, value = (of.get(name, x) for name in ("query", "key", "value"))
        projected = {
            "query": self.query(query),
            "key": (self.query if options.share_query_key else self.key)(key),
            "value": self.value(value),
            **{name: projection(of.get(name, x)) for name, projection in self.inputs.items()},
        }
        if options.convolution:
            for name, convolution in self.convolutions.items():
                projected[name], after[name] = convolution(
                    projected[name], before.get(name), context.document
                )
        inputs = {}
        for name, z in projected.items():
            groups = self.config.key_heads if name in ("query", "key") else heads
            z = z.reshape(*z.shape[:2], groups, -1)
            inputs[name] = z if groups == heads else jnp.repeat(z, heads // groups, axis=2)
        inputs = {{"query": "q", "key": "k", "value": "v"}.get(n, n): z for n, z in inputs.items()}
        for stream in self.config.streams:
            if stream.is_input:
                inputs[stream.name] = stream.gate.activate(inputs[stream.name])
        for name, projection in self.gates.items():
            inputs[name] = projection(of.get(name, x))
        for name, constant in self.learned.items():
            inputs[name] = constant(place)
        if options.output_gate:
            gate = self.output_gate(of.get("gate", x))
            gate = ACTIVATIONS[options.gate_activation](gate)
            inputs["gate"] = gate.reshape(*x.shape[:2], heads, -1)
        return inputs, after

    def _memorize(self, q, k, v, gates, state, context):
        """`memorize` on the mesh in force; the third result is the diagnostics or None."""
        memory = state and state.memory
        diagnose = context.diagnose and isinstance(self.memory, Memory)
        inputs = (self.memory, self.parameters, q, k, v, gates, memory, context.segment_ids)
        return parallel.read(*inputs, diagnose=diagnose)
