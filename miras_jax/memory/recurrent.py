"""The recurrent form: one token at a time. The definition of every memory, the path of decoding and
the oracle that the other forms are tested against; it forms every token's memory outright.

For a memory that takes its gradients at the chunk's start it holds that start beside the running
memory, so that token by token it gives what the chunked form gives.
"""

import jax
import jax.numpy as jnp

from miras_jax.memory import layer as la
from miras_jax.memory.head import Chunk, Head, choose
from miras_jax.memory.memory import Memory, Weights


def token_step(
    memory: Memory, initial: Weights, head: Head, token: Chunk, phase: jax.Array
) -> tuple[Head, jax.Array, jax.Array]:
    """Learns from one token, then reads it.

    Args:
      memory: the four choices.
      initial: A_0 by layer `[inputs, outputs]`.
      head: the state of one head; `start` is the accumulator at the start of the current chunk.
      token: q, k `[K]`, v `[V]`, gates `[]` or `[n]`, reset bool or None.
      phase: int32, tokens of the current chunk read before this one.

    Returns:
      the state after the token, the phase after it, and `y [V]`.
    """
    layers = memory.layers(token.k.shape[-1], token.v.shape[-1])
    retention, gates = memory.retention, token.gates
    weights, momentum, start = head
    if token.reset is not None:
        weights = choose(token.reset, initial, weights)
        momentum = jax.tree.map(lambda s: jnp.where(token.reset, 0.0, s), momentum)
        start = start and choose(token.reset, initial, start)

    # One token's gates, as `[1, n]`.
    row = jax.tree.map(lambda x: x[None], gates)
    live = jnp.ones(1, bool)
    by_layer = {
        name: la.layer_gates(layer, memory.gates, row, live, token.k.dtype)
        for name, layer in layers.items()
    }

    # A' = anchor + rho (A - anchor)
    decayed = {}
    for name in layers:
        rho = jnp.exp(by_layer[name].log_decay)
        rho = rho.T if by_layer[name].axis == "inputs" else rho
        anchor = initial[name] if retention.anchor == "initial" else 0.0
        decayed[name] = anchor + rho * (weights[name] - anchor)
        if retention.decay is None:
            decayed[name] = weights[name]

    # g = dl/dW at the memory that the residual is measured against: an outer product per layer.
    against = start
    if memory.exact:
        against = decayed if retention.decay_first else weights
    inputs = {}

    def predict(taps):
        def linear(name, x):
            inputs[name] = x
            return x @ retention.link(against[name], initial[name], layers[name]) + taps[name]

        return memory.architecture.apply(linear, token.k[None]), inputs

    taps = {name: jnp.zeros((1, layer.outputs), token.k.dtype) for name, layer in layers.items()}
    prediction, backward, inputs = jax.vjp(predict, taps, has_aux=True)
    (cotangents,) = backward(memory.bias.gradient(prediction, token.v[None], row))

    # A = A' - eta g, or A = A' + S with S = mu S - eta g
    for name, layer in layers.items():
        u = memory.algorithm.direction(inputs[name], retention.gain(layer))
        d = cotangents[name]
        if by_layer[name].step_out is not None:
            d = d * by_layer[name].step_out
        update = -(u * by_layer[name].step_in).T @ d
        if momentum:
            update += gates["momentum"] * momentum[name]
            momentum = {**momentum, name: update}
        weights = {**weights, name: decayed[name] + update}

    def linear(name, x):
        if memory.read == "chunk":
            return x @ retention.link(start[name], initial[name], layers[name])
        if memory.exact:
            return x @ weights[name]
        return x @ weights[name] * retention.factor(start[name], initial[name])

    y = memory.architecture.apply(linear, token.q[None])[0]
    phase = (phase + 1) % memory.chunk_size
    if not memory.exact:
        start = choose(phase == 0, weights, start)
    return Head(weights, momentum, start), phase, y


def recurrent(
    memory: Memory, initial: Weights, head: Head, tokens: Chunk, phase: jax.Array | None
) -> tuple[Head, jax.Array]:
    """Runs `token_step` over the T tokens of one head; arguments and results as `chunked`."""
    if head.start is None:
        head = head._replace(start={} if memory.exact else head.weights)
    phase = jnp.zeros((), jnp.int32) if phase is None else phase

    def body(carry, token):
        head, phase = carry
        head, phase, y = token_step(memory, initial, head, token, phase)
        return (head, phase), y

    (head, _), y = jax.lax.scan(body, (head, phase), tokens)
    return head, y
