"""A memory is its four choices; its parameters are its learned start, its state is what it read."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from miras_jax.memory.algorithm import GradientDescent
from miras_jax.memory.architecture import Architecture, Layer, Matrix
from miras_jax.memory.bias import L2, Bias
from miras_jax.memory.compatibility import check, why_not_exact_gradients
from miras_jax.memory.gate import Gate
from miras_jax.memory.retention import Retention

Weights = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parameters:
    """What a memory learns in the outer loop: its initial accumulators A_0, and its sizes.

    Attributes:
      weights: float32 `[H, inputs, outputs]` by layer; layers that start at zero learn no start
        and are absent, so the pytree of a matrix memory has no leaves.
      heads, key_dim, value_dim: H, K, V; static.
    """

    weights: Weights
    heads: int = dataclasses.field(metadata={"static": True})
    key_dim: int = dataclasses.field(metadata={"static": True})
    value_dim: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a memory holds between two calls; its size does not depend on how much was read.

    Attributes:
      weights: accumulators A by layer, `[B, H, inputs, outputs]`; the weights themselves under the
        identity link. A matrix memory reads `q @ weights["memory"]`.
      momentum: S by layer, the same shapes; empty for gradient descent.
      start: the accumulators at the start of the current chunk, where the gradients of the chunk
        or its reads are taken; empty for memories that are exact at every chunk size.
      optimizer: of an algorithm that takes one step a chunk, a pytree of leaves `[B, H, ...]` (see
        `Memory.begin`); else empty.
      phase: int32 `[B]`, tokens read of the current chunk, 0 .. chunk_size - 1.
      segment: int32 `[B]`, the last token's segment id; -1 before any id was given.
    """

    weights: Weights
    momentum: Weights
    start: Weights
    optimizer: dict[str, Any]
    phase: jax.Array
    segment: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """An associative memory that is trained at test time (Miras section 3).

    Attributes:
      architecture, bias, retention, algorithm: the four choices.
      chunk_size: tokens whose gradients are taken at the same memory, the one at the chunk's
        start (Miras section 5.4). It is part of the model: train and serve at the same size. Only
        an `exact` memory is the same function at every size.
      read: "token", each token reads the memory after its own write (within a chunk under the
        link's factor, or along its tangent, at the chunk's start); "chunk", every token reads the
        chunk's start, for links that have neither; "commit" the same but for the chunk's last
        token, which reads what the chunk has made (with a chunk of one token, its own write).
      gradient: "exact", every gradient is taken at the memory of its own token, which a linear
        memory with an affine bias can do in chunks by a triangular solve; "chunk", at the chunk's
        start; "auto" is exact where that is possible and tokens read their own writes.

    Raises:
      ValueError: the choices do not make a memory; the message says why.
    """

    architecture: Architecture = Matrix()
    bias: Bias = L2()
    retention: Retention = Retention()
    algorithm: GradientDescent = GradientDescent()
    chunk_size: int = 64
    read: Literal["token", "chunk", "commit"] = "token"
    gradient: Literal["auto", "exact", "chunk"] = "auto"

    def __post_init__(self):
        check(self)

    @property
    def exact_gradients(self) -> bool:
        """True if every gradient is taken at the memory of its own token."""
        return not why_not_exact_gradients(self)

    @property
    def exact(self) -> bool:
        """True if the memory is the same function at every chunk size."""
        return self.exact_gradients and self.read == "token"

    @property
    def commits(self) -> bool:
        """True if the end of a chunk does more than go on with the accumulator."""
        algorithm = self.algorithm
        return algorithm.steps_a_chunk or self.retention.commits or algorithm.lift is not None

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms in which the memory runs. A recurrence of separate numbers (a vector or its
        entries with l2) has no products to gain from chunks."""
        kinds = {layer.kind for layer in self.layers(1, 1).values()}
        if "entries" in kinds or (
            self.exact_gradients and self.bias.curvature and "diagonal" in kinds
        ):
            return ("recurrent",)
        if self.exact and "momentum" not in self.algorithm.gates:
            return ("recurrent", "chunked", "associative")
        return ("recurrent", "chunked")

    @property
    def gates(self) -> dict[str, Gate]:
        """The gates that `memorize` needs, by name: what a layer has to project."""
        choices = (self.retention, self.bias, self.algorithm, self.architecture)
        return {name: gate for choice in choices for name, gate in choice.gates.items()}

    def layers(self, key_dim: int, value_dim: int) -> dict[str, Layer]:
        """The layers by name, those that the memory never writes included."""
        return self.architecture.layers(key_dim, value_dim)

    def written(self, key_dim: int, value_dim: int) -> dict[str, Layer]:
        """The layers that the memory writes."""
        layers = self.layers(key_dim, value_dim)
        return {name: layer for name, layer in layers.items() if not layer.frozen}

    def init(self, key: jax.Array, *, heads: int, key_dim: int, value_dim: int) -> Parameters:
        """Draws the learned start of `heads` memories from keys `[K]` to values `[V]`."""
        layers = self.layers(key_dim, value_dim)
        keys = dict(zip(layers, jax.random.split(key, len(layers)), strict=True))
        weights = {}
        for name, layer in layers.items():
            if layer.std is not None:
                std = layer.std if layer.frozen else self.retention.initial_std(layer)
                shape = (heads, layer.inputs, layer.outputs)
                noise = jax.random.normal(keys[name], shape, jnp.float32)
                weights[name] = layer.mean + std * noise
        return Parameters(weights, heads, key_dim, value_dim)

    def initial(self, params: Parameters, dtype: jnp.dtype = jnp.float32) -> Weights:
        """A_0 of every layer `[H, inputs, outputs]`, zeros where no start is learned; of a layer
        that is never written its weights."""
        initial = {}
        for name, layer in self.layers(params.key_dim, params.value_dim).items():
            if name in params.weights:
                a = params.weights[name].astype(dtype)
            else:
                a = jnp.zeros((params.heads, layer.inputs, layer.outputs), dtype)
            initial[name] = a if layer.frozen else self.retention.start(a, layer)
        return initial

    def init_state(
        self,
        params: Parameters,
        *,
        batch: int,
        weights: Mapping[str, jax.Array] | None = None,
        momentum: Mapping[str, jax.Array] | None = None,
        phase: int = 0,
        dtype: jnp.dtype = jnp.float32,
    ) -> State:
        """The state before the first token.

        Args:
          params: the memory's parameters.
          batch: B.
          weights: accumulators to begin from, `[B, H, inputs, outputs]` by layer, instead of the
            learned start.
          momentum: S to begin from, the same shapes, instead of zeros.
          phase: tokens of the first chunk that are taken to lie before the first one.
          dtype: float32, or float64 for float64 inputs.

        Raises:
          ValueError: a layer's name or shape in `weights` is not the memory's, or the phase is
            not in 0 .. chunk_size - 1.
        """
        if not 0 <= phase < self.chunk_size:
            raise ValueError(f"phase must be in 0 .. {self.chunk_size - 1}, got {phase}.")
        layers = self.written(params.key_dim, params.value_dim)
        shapes = {
            name: (batch, params.heads, layer.inputs, layer.outputs)
            for name, layer in layers.items()
        }

        def given(name, leaves):
            if {n: jnp.shape(w) for n, w in leaves.items()} != shapes:
                found = {n: jnp.shape(w) for n, w in leaves.items()}
                raise ValueError(f"{name} of a state must have shapes {shapes}, got {found}.")
            return {n: jnp.asarray(leaves[n], dtype) for n in shapes}

        if weights is None:
            initial = self.initial(params, dtype)
            weights = {n: jnp.broadcast_to(initial[n], shapes[n]) for n in shapes}
        else:
            weights = given("weights", weights)
        holds_momentum = "momentum" in self.algorithm.gates
        if momentum is not None and not holds_momentum:
            raise ValueError(f"{type(self.algorithm).__name__} has no momentum to begin from.")
        if momentum is not None:
            momentum = given("momentum", momentum)
        else:
            momentum = jax.tree.map(jnp.zeros_like, weights) if holds_momentum else {}
        optimizer = {}
        if self.algorithm.steps_a_chunk:
            initial = self.initial(params, dtype)
            initial = {n: jnp.broadcast_to(initial[n], shapes[n]) for n in shapes}
            sizes = params.key_dim, params.value_dim
            optimizer = jax.vmap(jax.vmap(lambda a0: self.begin(a0, *sizes)))(initial)
            if momentum:
                optimizer, momentum = {**optimizer, "state": momentum}, {}
        return State(
            weights=weights,
            momentum=momentum,
            # A copy: the state can be donated.
            start={} if self.exact else jax.tree.map(jnp.copy, weights),
            optimizer=optimizer,
            phase=jnp.full(batch, 0 if self.exact else phase, jnp.int32),
            segment=jnp.full(batch, -1, jnp.int32),
        )

    def begin(self, initial: Weights, key_dim: int, value_dim: int) -> dict[str, Any]:
        """What an algorithm of one step a chunk holds when a document begins, for one head's
        initial accumulators: its own "state", and over the tokens of the running chunk the "sums"
        of its gates and the retention's, and the "count"."""
        dtype = jax.tree.leaves(initial)[0].dtype
        gates = {**self.retention.gates, **self.algorithm.gates}
        return {
            "state": self.algorithm.init(initial),
            "sums": {
                name: jnp.zeros(gate.shape((), key_dim, value_dim), dtype)
                for name, gate in gates.items()
            },
            "count": jnp.zeros((), dtype),
        }
