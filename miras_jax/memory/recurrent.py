"""The recurrent form: one token at a time. The definition of every memory, the path of decoding and
the oracle that the other forms are tested against; it forms every token's memory outright.

For a memory that takes its gradients or its reads at the chunk's start it holds that start beside
the running memory, so that token by token it gives what the chunked form gives.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from miras_jax.memory import layer as la
from miras_jax.memory.commit import commit, tally
from miras_jax.memory.head import Chunk, Head, choose, inner_steps, marked
from miras_jax.memory.memory import Memory, Weights


class Diagnostics(NamedTuple):
    """What the inner loop did at every token; arrays `[B, T, H]`.

    Attributes:
      loss_before: of the token's pair (k, v) at the memory that the token found.
      loss_after: of the same pair at the memory that it left, the end of a chunk included.
      step_norm: l2 norm of the change of the accumulators between the two, all layers.
      memory_norm: l2 norm of the weights after it.
      retention: rho, exp of the mean log decay over channels; 1 without decay.
      step: mean of eta over channels; 1 without a step gate.
    """

    loss_before: jax.Array
    loss_after: jax.Array
    step_norm: jax.Array
    memory_norm: jax.Array
    retention: jax.Array
    step: jax.Array


def token_step(
    memory: Memory,
    initial: Weights,
    head: Head,
    token: Chunk,
    phase: jax.Array,
    diagnose: bool = False,
) -> tuple[Head, jax.Array, jax.Array, Diagnostics | None]:
    """Learns from one token, then reads it.

    Args:
      memory: the four choices.
      initial: A_0 by layer `[inputs, outputs]`; of layers that are never written, their weights.
      head: the state of one head; `start` is the accumulator at the start of the current chunk.
      token: a chunk of one token; reset `[1]` bool or None.
      phase: int32, tokens of the current chunk read before this one.

    Returns:
      the state after the token, the phase after it, `y [1, V]`, and what the inner loop did, if
      asked.
    """
    layers = memory.layers(token.k.shape[-1], token.v.shape[-1])
    written = memory.written(token.k.shape[-1], token.v.shape[-1])
    retention, algorithm = memory.retention, memory.algorithm
    if token.reset is not None:
        head = _begin(memory, initial, head, token)
    inner, count = inner_steps(algorithm, token)
    before = head
    for i in range(count):
        head = _learn(memory, initial, head, jax.tree.map(lambda x, i=i: x[i : i + 1], inner))
    head = head._replace(optimizer=tally(head.optimizer, inner.gates, jnp.ones(1, token.q.dtype)))

    start = head.start or head.weights
    after = phase + 1
    complete = after == memory.chunk_size
    running = head
    if memory.commits:
        head = choose(complete, commit(memory, initial, start, head, inner), head)
    if not memory.exact:
        head = head._replace(start=choose(complete, head.weights, head.start))

    def linear_of(weights, scales=None):
        return la.formed(retention, layers, initial, weights, scales)

    if memory.read == "token":
        weights = running.weights
        if algorithm.lift is not None:
            lift = token.gates["lift"][0]
            weights = {n: start[n] + lift * (weights[n] - start[n]) for n in written}
        linear = linear_of(weights, start)
    else:
        linear = linear_of(start if memory.read == "chunk" else head.start)
    y = memory.architecture.read(linear, token.q, token.gates)
    diagnostics = None
    if diagnose:
        diagnostics = _diagnose(memory, initial, before, head, inner, linear_of)
    return head, after % memory.chunk_size, y, diagnostics


def _begin(memory: Memory, initial: Weights, head: Head, token: Chunk) -> Head:
    """The state with a document's start in its place, where one begins."""
    reset, initial = marked(token.reset), {name: initial[name] for name in head.weights}
    optimizer = head.optimizer
    if optimizer:
        begun = memory.begin(initial, token.k.shape[-1], token.v.shape[-1])
        optimizer = choose(reset, begun, optimizer)
    return Head(
        weights=choose(reset, initial, head.weights),
        momentum=jax.tree.map(lambda s: jnp.where(reset, 0.0, s), head.momentum),
        start=head.start and choose(reset, initial, head.start),
        optimizer=optimizer,
    )


def _learn(memory: Memory, initial: Weights, head: Head, step: Chunk) -> Head:
    """One inner step, a chunk of one row; the state after it."""
    layers = memory.layers(step.k.shape[-1], step.v.shape[-1])
    written = memory.written(step.k.shape[-1], step.v.shape[-1])
    retention, algorithm = memory.retention, memory.algorithm
    specs = {} if algorithm.steps_a_chunk else retention.gates
    specs, live = {**specs, **algorithm.gates}, jnp.ones((1, 1), bool)
    gates = {
        name: la.layer_gates(
            layer, algorithm.step_gate(name), specs, step.gates, live, step.k.dtype
        )
        for name, layer in written.items()
    }

    # A' = anchor + rho (A - anchor)
    decayed = head.weights
    if retention.gates and not algorithm.steps_a_chunk:
        decayed = {}
        for name in written:
            anchor = initial[name] if retention.anchor == "initial" else 0.0
            decayed[name] = anchor + gates[name].decayed(head.weights[name] - anchor)

    # g = dl/dW at the memory that the residual is measured against: an outer product per layer.
    against = head.start
    if memory.exact_gradients:
        against = decayed if retention.decay_first else head.weights
    inputs = {}

    def predict(taps):
        def linear(name, x):
            layer = layers[name]
            if layer.frozen:
                return layer.apply(x, initial[name])
            inputs[name] = x
            return layer.apply(x, retention.link(against[name], initial[name], layer)) + taps[name]

        address = step.k if step.address is None else step.address
        return memory.architecture.apply(linear, address), inputs

    taps = {name: jnp.zeros((1, layer.width), step.k.dtype) for name, layer in written.items()}
    prediction, backward, inputs = jax.vjp(predict, taps, has_aux=True)
    target = memory.architecture.target(step.k, step.v)
    (cotangents,) = backward(memory.bias.gradient(prediction, target, step.gates))

    # A = A' - eta g, or A = A' + S with S = mu S - eta g
    weights, momentum = {}, {}
    for name, layer in written.items():
        x = inputs[name] if step.address is None else step.k
        u = algorithm.direction(layer, x, retention.gain(layer))
        update = -layer.outer(*gates[name].factors(u, cotangents[name]))
        if head.momentum:
            mu = step.gates["momentum"][0]
            momentum[name] = mu * head.momentum[name] + update
            update = mu * momentum[name] + update if algorithm.nesterov else momentum[name]
        weights[name] = decayed[name] + update
    return head._replace(weights=weights, momentum=momentum)


def _diagnose(memory, initial, before, after, inner, linear_of) -> Diagnostics:
    layers = memory.written(inner.k.shape[-1], inner.v.shape[-1])
    last = jax.tree.map(lambda x: x[-1:], inner)
    target = memory.architecture.target(last.k, last.v)

    def loss(weights):
        prediction = memory.architecture.apply(linear_of(weights), last.k)
        return memory.bias.loss(prediction, target, last.gates)[0]

    def norm(tree):
        return jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(tree)))

    def mean(names):
        found = [jnp.mean(inner.gates[name][0]) for name in names if name in inner.gates]
        return sum(found) if found else None

    def found(head):
        """What a token can read: a memory that steps once a chunk stands still until then."""
        return head.weights if memory.read == "token" else head.start

    one = jnp.ones((), inner.k.dtype)
    log_decay, step = mean(("log_decay", "log_value_decay")), mean(("step",))
    return Diagnostics(
        loss_before=loss(found(before)),
        loss_after=loss(found(after)),
        step_norm=norm(jax.tree.map(jnp.subtract, after.weights, before.weights)),
        memory_norm=norm(
            {
                name: memory.retention.link(after.weights[name], initial[name], layer)
                for name, layer in layers.items()
            }
        ),
        retention=one if log_decay is None else jnp.exp(log_decay),
        step=one if step is None else step,
    )


def recurrent(
    memory: Memory,
    initial: Weights,
    head: Head,
    tokens: Chunk,
    phase: jax.Array | None,
    diagnose: bool = False,
) -> tuple[Head, jax.Array, Diagnostics | None]:
    """Runs `token_step` over the T tokens of one head.

    Args:
      memory: the four choices.
      initial: A_0 by layer.
      head: the state before the first token.
      tokens: T tokens, any T, all live.
      phase: int32, tokens of the current chunk read before; None is 0.
      diagnose: also say what the inner loop did at each token.

    Returns:
      the state after the last token, `y [T, V]`, and the diagnostics `[T]` or None.
    """
    if head.start is None:
        head = head._replace(start={} if memory.exact else head.weights)
    phase = jnp.zeros((), jnp.int32) if phase is None else phase

    def body(carry, token):
        head, phase = carry
        token = jax.tree.map(lambda x: x[None], token)
        head, phase, y, diagnostics = token_step(memory, initial, head, token, phase, diagnose)
        return (head, phase), (y[0], diagnostics)

    (head, _), (y, diagnostics) = jax.lax.scan(body, (head, phase), tokens)
    return head, y, diagnostics
