"""FLOPs of a memory, counted from its layers: for utilisation figures, not for timing."""

import jax
import jax.numpy as jnp

from miras_jax.memory.algorithm import Momentum
from miras_jax.memory.architecture import Layer, NormalEquations
from miras_jax.memory.attention import Attention
from miras_jax.memory.chunk_algorithm import Muon
from miras_jax.memory.memory import Memory
from miras_jax.memory.window import SlidingWindowAttention


def per_token(
    memory: Memory | Attention | SlidingWindowAttention, key_dim: int, value_dim: int, window: int
) -> float:
    """FLOPs of the matrix products of one head for one token, forward, in the chunked form.

    Counted are, for every inner step of the token and every layer that is a matrix: prediction and
    cotangent, the write, the reads, the sums over the chunk's own writes (causal: half of the
    chunk), the triangular solve; Newton-Schulz iterations. Conjugate gradients count as many
    iterations as they may take. What is elementwise counts nothing, so that a memory of separate
    numbers (`Vector`, `Entries`) costs little or nothing here.

    Args:
      memory: what is run.
      key_dim, value_dim: K, V.
      window: tokens read in all; only attention's cost depends on it, once it fills a chunk.
    """
    if isinstance(memory, Attention):
        return 2 * (key_dim + value_dim) * window / 2
    if isinstance(memory, SlidingWindowAttention):
        # A token sees the pairs before it until they fill the window.
        reach = min(memory.window, window)
        seen = memory.persistent + reach - reach * reach / (2 * window)
        return 2 * (key_dim + value_dim) * seen
    if "chunked" not in memory.forms:
        return 0.0
    steps, chunk = inner_steps(memory, key_dim, value_dim), min(memory.chunk_size, window)
    total = 0.0
    for name, layer in memory.written(key_dim, value_dim).items():
        total += steps * _learn(memory, layer, steps * chunk)
        total += steps * _reads(memory, name) * _read(memory, layer, steps * chunk)
        if isinstance(memory.algorithm, Muon) and layer.kind == "dense":
            total += _newton_schulz(layer, len(memory.algorithm.coefficients)) / chunk
    return total


def inner_steps(memory: Memory, key_dim: int, value_dim: int) -> int:
    """Inner steps a token."""

    def steps():
        gates = {
            n: jnp.zeros(gate.shape((1,), key_dim, value_dim)) for n, gate in memory.gates.items()
        }
        return memory.algorithm.steps(jnp.zeros((1, key_dim)), jnp.zeros((1, value_dim)), gates)

    return len(jax.eval_shape(steps))


def _product(layer: Layer) -> float:
    """Of a token's row with the layer's weights, or an outer product of its size."""
    return 2 * layer.inputs * layer.outputs if layer.kind == "dense" else 0.0


def _own_writes(layer: Layer, chunk: int) -> float:
    """Of a sum over the chunk's writes before a token: their scores, then their values."""
    return chunk * (layer.outputs + (layer.inputs if layer.kind == "dense" else 0))


def _read_start(memory: Memory, layer: Layer) -> float:
    """Of a read without the chunk's writes: the memory, what it decays to, the momentum."""
    retention = memory.retention
    anchored = bool(retention.gates) and retention.anchor == "initial" and layer.std is not None
    return _product(layer) * (1 + anchored + isinstance(memory.algorithm, Momentum))


def _learn(memory: Memory, layer: Layer, chunk: int) -> float:
    """Of a layer's gradient and write."""
    total = _product(layer) * (1 + isinstance(memory.algorithm, Momentum))
    if memory.exact_gradients and memory.bias.curvature:
        # The residual at the token's own memory: scores, and a triangular solve for the values.
        return total + _read_start(memory, layer) + _own_writes(layer, chunk)
    # The cotangent stops at the first layer; a linear memory needs no prediction for the dot
    # product, a nonlinear one the forward pass to differentiate it.
    predicts = memory.bias.curvature != 0 or not memory.architecture.linear
    return total + _product(layer) * (predicts + (not layer.reads_key))


def _read(memory: Memory, layer: Layer, chunk: int) -> float:
    """Of a product of the read."""
    if memory.read == "chunk":
        return _product(layer)
    if memory.read == "commit":  # the last token reads twice
        return _product(layer) * (1 + 1 / chunk)
    total = _read_start(memory, layer) + _own_writes(layer, chunk)
    # A lift reads the chunk's start as well, a tangent its weights and its accumulator.
    more = 2 * memory.retention.tangent + (memory.algorithm.lift is not None)
    return total + more * _product(layer)


def _reads(memory: Memory, name: str) -> int:
    """Products with a layer in one read."""
    if isinstance(memory.architecture, NormalEquations) and name == "keys":
        return memory.architecture.iterations
    return 1


def _newton_schulz(layer: Layer, iterations: int) -> float:
    """Of a step made orthogonal: X X^T, its square and one more product with X an iteration."""
    small, large = sorted((layer.inputs, layer.outputs))
    return iterations * (4 * small**2 * large + 2 * small**3)
