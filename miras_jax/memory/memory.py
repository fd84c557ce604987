"""A memory is its four choices; its parameters are its learned start, its state is what it read."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from miras_jax.memory.algorithm import Algorithm, GradientDescent, Momentum
from miras_jax.memory.architecture import Architecture, Layer, Matrix
from miras_jax.memory.bias import L2, Bias
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
        are taken; empty for memories that are exact at every chunk size.
      phase: int32 `[B]`, tokens read of the current chunk, 0 .. chunk_size - 1.
      segment: int32 `[B]`, the last token's segment id; -1 before any id was given.
    """

    weights: Weights
    momentum: Weights
    start: Weights
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
        link's factor at the chunk's start); "chunk", every token reads the chunk's start, for
        links that are no multiple of the accumulator.
      gradient: "exact", every gradient is taken at the memory of its own token, which a linear
        memory with an affine bias can do in chunks by a triangular solve; "chunk", at the chunk's
        start; "auto" is exact where that is possible.

    Raises:
      ValueError: the choices do not make a memory; the message says why.
    """

    architecture: Architecture = Matrix()
    bias: Bias = L2()
    retention: Retention = Retention()
    algorithm: Algorithm = GradientDescent()
    chunk_size: int = 64
    read: Literal["token", "chunk"] = "token"
    gradient: Literal["auto", "exact", "chunk"] = "auto"

    forms = ("recurrent", "chunked")

    def __post_init__(self):
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}.")
        if self.read not in ("token", "chunk"):
            raise ValueError(f"read must be 'token' or 'chunk', got {self.read!r}.")
        if self.gradient not in ("auto", "exact", "chunk"):
            raise ValueError(f"gradient must be auto, exact or chunk, got {self.gradient!r}.")
        if self.gradient == "exact" and not self._can_be_exact:
            raise ValueError(
                "gradient='exact' needs a linear architecture, a dot-product or l2 bias, the "
                "identity link, reads by token and, for l2, no gate per value channel; this memory "
                f"has {self.architecture}, {self.bias}, {self.retention}, {self.algorithm}, "
                f"read={self.read!r}."
            )
        if self.read == "token" and not self.retention.scalar_link:
            raise ValueError(
                f"{self.retention} has a link that is no multiple of the accumulator, so a chunk "
                "cannot read between its writes: choose read='chunk'."
            )
        if self.retention.decay_first and not self.exact:
            raise ValueError(
                "decay_first=True orders decay and residual within a token, but this memory takes "
                "its gradients at the chunk's start: choose decay_first=False."
            )
        if self.retention.decay_first and isinstance(self.algorithm, Momentum):
            raise ValueError("decay_first=True is not defined with momentum: choose False.")
        if not self.retention.identity and self.retention.scalar_link and self._starts_at_zero:
            raise ValueError(
                f"{self.retention} scales by the norm of the start, and {self.architecture} starts "
                "at zero: choose an architecture with a learned start."
            )

    @property
    def _starts_at_zero(self) -> bool:
        return any(layer.std is None for layer in self.layers(1, 1).values())

    @property
    def _can_be_exact(self) -> bool:
        return (
            self.architecture.linear
            and self.bias.curvature is not None
            and self.retention.identity
            and self.read == "token"
            # The solve couples all value channels.
            and not (self.bias.curvature and any(g.per == "value" for g in self.gates.values()))
        )

    @property
    def exact(self) -> bool:
        """True if the memory is the same function at every chunk size."""
        return self._can_be_exact and self.gradient != "chunk"

    @property
    def gates(self) -> dict[str, Gate]:
        """The gates that `memorize` needs, by name: what a layer has to project."""
        return {**self.retention.gates, **self.bias.gates, **self.algorithm.gates}

    def layers(self, key_dim: int, value_dim: int) -> dict[str, Layer]:
        return self.architecture.layers(key_dim, value_dim)

    def init(self, key: jax.Array, *, heads: int, key_dim: int, value_dim: int) -> Parameters:
        """Draws the learned start of `heads` memories from keys `[K]` to values `[V]`."""
        layers = self.layers(key_dim, value_dim)
        keys = dict(zip(layers, jax.random.split(key, len(layers)), strict=True))
        weights = {
            name: self.retention.initial_std(layer)
            * jax.random.normal(keys[name], (heads, layer.inputs, layer.outputs), jnp.float32)
            for name, layer in layers.items()
            if layer.std is not None
        }
        return Parameters(weights, heads, key_dim, value_dim)

    def initial(self, params: Parameters, dtype: jnp.dtype = jnp.float32) -> Weights:
        """A_0 of every layer `[H, inputs, outputs]`, zeros where no start is learned."""
        return {
            name: params.weights[name].astype(dtype)
            if name in params.weights
            else jnp.zeros((params.heads, layer.inputs, layer.outputs), dtype)
            for name, layer in self.layers(params.key_dim, params.value_dim).items()
        }

    def init_state(
        self,
        params: Parameters,
        *,
        batch: int,
        weights: Mapping[str, jax.Array] | None = None,
        phase: int = 0,
        dtype: jnp.dtype = jnp.float32,
    ) -> State:
        """The state before the first token.

        Args:
          params: the memory's parameters.
          batch: B.
          weights: accumulators to begin from, `[B, H, inputs, outputs]` by layer, instead of the
            learned start.
          phase: tokens of the first chunk that are taken to lie before the first one.
          dtype: float32, or float64 for float64 inputs.

        Raises:
          ValueError: a layer's name or shape in `weights` is not the memory's, or the phase is
            not in 0 .. chunk_size - 1.
        """
        if not 0 <= phase < self.chunk_size:
            raise ValueError(f"phase must be in 0 .. {self.chunk_size - 1}, got {phase}.")
        shapes = {
            name: (batch, params.heads, layer.inputs, layer.outputs)
            for name, layer in self.layers(params.key_dim, params.value_dim).items()
        }
        if weights is None:
            weights = self.initial(params, dtype)
        elif {n: jnp.shape(w) for n, w in weights.items()} != shapes:
            given = {n: jnp.shape(w) for n, w in weights.items()}
            raise ValueError(f"weights of a state must have shapes {shapes}, got {given}.")
        weights = {n: jnp.broadcast_to(jnp.asarray(weights[n], dtype), shapes[n]) for n in shapes}
        has_momentum = isinstance(self.algorithm, Momentum)
        return State(
            weights=weights,
            momentum=jax.tree.map(jnp.zeros_like, weights) if has_momentum else {},
            # A copy: the state can be donated.
            start={} if self.exact else jax.tree.map(jnp.copy, weights),
            phase=jnp.full(batch, 0 if self.exact else phase, jnp.int32),
            segment=jnp.full(batch, -1, jnp.int32),
        )
