"""FLOPs of a memory, counted from its layers: for utilisation figures, not for timing."""

from miras_jax.memory.attention import Attention
from miras_jax.memory.memory import Memory
from miras_jax.memory.window import SlidingWindowAttention


def per_token(
    memory: Memory | Attention | SlidingWindowAttention, key_dim: int, value_dim: int, window: int
) -> float:
    """FLOPs of the matrix products of one head for one token, forward, in the chunked form.

    Args:
      memory: what is run.
      key_dim, value_dim: K, V.
      window: tokens read in all; only attention's cost depends on it.
    """
    if isinstance(memory, Attention):
        return 2 * (key_dim + value_dim) * window / 2
    if isinstance(memory, SlidingWindowAttention):
        # A token sees the pairs before it until they fill the window.
        reach = min(memory.window, window)
        seen = memory.persistent + reach - reach * reach / (2 * window)
        return 2 * (key_dim + value_dim) * seen
    chunk = min(memory.chunk_size, window)
    total = 0.0
    for layer in memory.layers(key_dim, value_dim).values():
        weights = 2 * layer.inputs * layer.outputs
        # Read, write; the prediction, which the dot product does not need; and the cotangent,
        # which stops at the first layer.
        predict = memory.bias.curvature != 0
        total += weights * (2 + predict + (not layer.reads_key))
        # The reads of the chunk's own writes, causal: half of C tokens, scores and values.
        total += chunk * (layer.inputs + layer.outputs)
    return total
