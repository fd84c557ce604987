"""Reading without writing."""

from functools import partial

import jax
import jax.numpy as jnp

from miras_jax.memory.layer import formed
from miras_jax.memory.memory import Memory, Parameters, State


@partial(jax.jit, static_argnames="memory")
def recall(memory: Memory, params: Parameters, state: State, q: jax.Array) -> jax.Array:
    """What a memory answers to queries as it stands; it learns nothing.

    Args:
      memory: the four choices; one whose reads need gates of their own (NormalEquations) has no
        answer without a token.
      params: `memory.init(...)`.
      state: what was read before.
      q: `[B, T, H, K]`; all T queries meet the same memory.

    Returns:
      `[B, T, H, V]` in the dtype of q.

    Raises:
      NotImplementedError: the memory is no `Memory`, or reads with gates or a lift.
    """
    if not isinstance(memory, Memory) or memory.algorithm.lift is not None:
        raise NotImplementedError(
            f"{memory} has no answer without a token: its reads need one. Use memorize."
        )
    if memory.architecture.gates:
        raise NotImplementedError(
            f"{type(memory.architecture).__name__} reads with the gates "
            f"{sorted(memory.architecture.gates)}: use memorize."
        )
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    layers = memory.layers(params.key_dim, params.value_dim)
    # Between two tokens of a chunk a link is not renewed, as in `memorize`.
    scales = state.start or state.weights
    running = state.weights if memory.read == "token" else scales

    def read(initial, weights, scales, q):
        renewed = scales if memory.read == "token" else None
        linear = formed(memory.retention, layers, initial, weights, renewed)
        return memory.architecture.read(linear, q, {})

    heads = jax.vmap(read, in_axes=(0, 0, 0, 1), out_axes=1)
    rows = jax.vmap(heads, in_axes=(None, 0, 0, 0))
    with jax.default_matmul_precision("highest"):
        y = rows(memory.initial(params, dtype), running, scales, q.astype(dtype))
    return y.astype(q.dtype)
