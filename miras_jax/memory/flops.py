"""FLOPs of a memory, counted from its layers: for utilisation figures, not for timing."""

from miras_jax.memory.attention import Attention
from miras_jax.memory.memory import Memory


def per_token(memory: Memory | Attention, key_dim: int, value_dim: int, window: int) -> float:
    """FLOPs of the matrix products of one head for one token, forward, in the chunked form.

    Args:
      memory: what is run.
      key_dim, value_dim: K, V.
      window: tokens read in all; only attention's cost depends on it.
    """
    if isinstance(memory, Attention):
        return 2 * (key_dim + value_dim) * window / 2
    chunk = min(memory.chunk_size, window)
    total = 0.0
    for layer in memory.layers(key_dim, value_dim).values():
        weights = 2 * layer.inputs * layer.outputs
        # Predict, read, write; and the cotangent, which stops at the first layer.
        total += weights * (3 if layer.reads_key else 4)
        # The reads of the chunk's own writes, causal: half of C tokens, scores and values.
        total += chunk * (layer.inputs + layer.outputs)
    return total
