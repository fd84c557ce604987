"""The chunked form: many tokens at once, the memory carried from chunk to chunk.

`chunk_step` is the one chunk function of the library: pure `jnp`, one head, one row. A scan drives
it here; other drivers may loop it on chip.

Inside a chunk every gradient is taken at the memory of the chunk's start (Miras section 5.4), or,
for a linear memory with an affine bias, at the memory of its own token by a unit lower triangular
solve. Reads see every write up to their own token, or the chunk's start, as the memory says.
"""

from functools import partial

import jax
import jax.numpy as jnp

from miras_jax.memory import coefficients as co
from miras_jax.memory import layer as la
from miras_jax.memory.commit import commit, tally
from miras_jax.memory.head import Chunk, Head, choose, inner_steps, marked
from miras_jax.memory.memory import Memory, Weights
from miras_jax.memory.triangular import KEPT, solve_unit_lower


def chunk_step(
    memory: Memory, initial: Weights, head: Head, chunk: Chunk, complete: bool | jax.Array
) -> tuple[Head, jax.Array]:
    """Reads a chunk and learns from it.

    Args:
      memory: the four choices.
      initial: A_0 by layer `[inputs, outputs]`; of layers that are never written, their weights.
      head: the state before the chunk's first token.
      chunk: C tokens.
      complete: whether the chunk ends with its last token, or goes on in a later call.

    Returns:
      the state after the chunk's last token (its `start` is the one passed in), and `y [C, V]`.
    """
    packed = chunk.reset is not None
    chunk, steps = inner_steps(memory.algorithm, chunk)
    reset, live = (x if x is None else x[:, None] for x in (chunk.reset, chunk.live))
    docs = co.documents(chunk.q.shape[0], reset, live)
    layers = memory.layers(chunk.k.shape[-1], chunk.v.shape[-1])
    written = memory.written(chunk.k.shape[-1], chunk.v.shape[-1])
    algorithm, retention, dtype = memory.algorithm, memory.retention, chunk.q.dtype

    # A memory that moves at the chunk's end alone does not decay before it either.
    specs = {} if algorithm.steps_a_chunk else retention.gates
    specs = {**specs, **algorithm.gates}
    gates = {
        name: la.layer_gates(layer, algorithm.step_gate(name), specs, chunk.gates, docs.live, dtype)
        for name, layer in written.items()
    }
    momentum = nesterov = None
    if head.momentum:
        mu = chunk.gates["momentum"][:, None]
        momentum = co.products(jnp.where(docs.live, mu, 1.0), docs)
        nesterov = mu if algorithm.nesterov else None
    coefs = {}
    for name, g in gates.items():
        # Decays per head are the same for every layer.
        alike = coefs and all(gate.per == "head" for gate in retention.gates.values())
        shared = next(iter(coefs.values())) if alike else None
        coefs[name] = shared or la.layer_coefficients(g, docs, momentum, nesterov)
    anchored = bool(retention.gates) and retention.anchor == "initial"
    memories = {
        name: la.LayerMemory(
            start=head.weights[name],
            initial=initial[name],
            anchor=initial[name] if anchored and layer.std is not None else None,
            momentum=head.momentum.get(name),
        )
        for name, layer in written.items()
    }
    start = head.start or head.weights

    def linear_at(weights, packed=packed):
        """The layers with given accumulators, or the initial ones for documents that began here."""

        def linear(name, x):
            layer, a0 = layers[name], initial[name]
            if layer.frozen:
                return layer.apply(x, a0)
            y = layer.apply(x, retention.link(weights[name], a0, layer))
            if not packed:
                return y
            y0 = layer.apply(x, retention.link(a0, a0, layer))
            return jnp.where(docs.fresh, y0, y)

        return linear

    # Write: layer by layer, token i adds the outer product -u_i d_i^T, steps included.
    u, d = {}, {}
    if memory.exact_gradients and memory.bias.curvature:
        ((name, layer),) = written.items()
        step = algorithm.direction(layer, chunk.k, retention.gain(layer)) * gates[name].step_in
        u[name] = step
        d[name] = _exact_gradients(memory, layer, chunk, step, memories[name], coefs[name])
    else:
        inputs, cotangents = _chunk_gradients(memory, written, linear_at(start), chunk)
        for name, layer in written.items():
            direction = algorithm.direction(layer, inputs[name], retention.gain(layer))
            u[name], d[name] = gates[name].factors(direction, cotangents[name])

    # Read: the layer as it stands after each token's own write.
    def token_linear(name, x):
        layer, a0 = layers[name], initial[name]
        if layer.frozen:
            return layer.apply(x, a0)
        along = retention.slope(x, layer) if retention.tangent else x
        y = la.read_start(layer, along, memories[name], coefs[name], packed)
        y -= la.read_writes(layer, along, u[name], d[name], coefs[name])
        if retention.tangent:
            begun = layer.apply(along, start[name])
            if packed:
                begun = jnp.where(docs.fresh, layer.apply(along, a0), begun)
            return linear_at(start)(name, x) + (y - begun)
        if algorithm.lift is not None:
            # Also of what an earlier call wrote in this chunk.
            y0 = linear_at(start)(name, x)
            y = y0 + chunk.gates["lift"][:, None] * (y - y0)
        factor = retention.factor(start[name], a0)
        if packed:
            factor = jnp.where(docs.fresh, retention.factor(a0, a0), factor)
        return factor * y

    linear = token_linear if memory.read == "token" else linear_at(start)
    y = memory.architecture.read(linear, chunk.q, chunk.gates)

    # Carry.
    weights = {
        name: la.end(layer, u[name], d[name], memories[name], coefs[name], packed)
        for name, layer in written.items()
    }
    carried = {}
    if momentum is not None:
        between, from_start = momentum
        carried = {
            name: from_start[-1:] * s - written[name].outer(u[name] * between[-1:].T, d[name])
            for name, s in head.momentum.items()
        }
    after = Head(weights, carried, head.start, head.optimizer)
    if memory.commits:
        after = _end_of_chunk(memory, initial, start, after, chunk, docs, complete)
    if memory.read == "commit":
        newest = linear_at(after.weights, packed=False)
        last_gates = jax.tree.map(lambda x: x[-1:], chunk.gates)
        last = memory.architecture.read(newest, chunk.q[-1:], last_gates)
        y = jnp.concatenate([y[:-1], jnp.where(complete, last, y[-1:])])
    return after, y[steps - 1 :: steps]


def _end_of_chunk(memory, initial, start, after: Head, chunk: Chunk, docs, complete) -> Head:
    """The state after a chunk, committed if the chunk is complete."""
    fresh, initial_written = marked(chunk.reset), {name: initial[name] for name in after.weights}
    if after.optimizer:
        begun = memory.begin(initial_written, chunk.k.shape[-1], chunk.v.shape[-1])
        counts = (docs.same[-1] & docs.live[:, 0]).astype(chunk.q.dtype)
        optimizer = tally(choose(fresh, begun, after.optimizer), chunk.gates, counts)
        after = after._replace(optimizer=optimizer)
    if complete is False:
        return after
    done = commit(memory, initial, choose(fresh, initial_written, start), after, chunk)
    return done if complete is True else choose(complete, done, after)


def _chunk_gradients(memory, layers, start_linear, chunk: Chunk) -> tuple[Weights, Weights]:
    """Inputs `[C, in]` and cotangents `[C, out]` of every layer at the start of the chunk."""
    architecture = memory.architecture

    def predict(taps):
        inputs = {}

        def linear(name, x):
            y = start_linear(name, x)
            if name not in layers:
                return y
            inputs[name] = x
            return y + taps[name]

        return architecture.apply(linear, chunk.k), inputs

    shape, dtype = (chunk.k.shape[0],), chunk.k.dtype
    taps = {name: jnp.zeros((*shape, layer.width), dtype) for name, layer in layers.items()}
    prediction, backward, inputs = jax.vjp(predict, taps, has_aux=True)
    target = architecture.target(chunk.k, chunk.v)
    (cotangents,) = backward(memory.bias.gradient(prediction, target, chunk.gates))
    return inputs, cotangents


def _exact_gradients(memory, layer, chunk: Chunk, u, start: la.LayerMemory, c):
    """Gradients `d_t = c pred_t - v_t` `[C, V]` of a linear memory, each at its own token's memory.

    `pred_t = recalled_t - sum_{i<t} coupling[t,i] d_i`, so `(I + c coupling) d = c recalled - v`
    with a strictly lower triangular coupling.
    """
    curvature = memory.bias.curvature
    address = chunk.k if chunk.address is None else chunk.address
    reset = chunk.reset if chunk.reset is None else chunk.reset[:, None]
    earlier = c.before_write() if memory.retention.decay_first else c.before(reset)
    recalled = la.read_start(layer, address, start, earlier, chunk.reset is not None)
    coupling = la.scores(address, u, earlier)
    return solve_unit_lower(curvature * coupling, curvature * recalled - chunk.v)


def chunked(
    memory: Memory,
    initial: Weights,
    head: Head,
    tokens: Chunk,
    phase: jax.Array | None,
) -> tuple[Head, jax.Array, None]:
    """Runs `chunk_step` over the tokens of one head.

    Args:
      memory: the four choices.
      initial: A_0 by layer.
      head: the state before the first token.
      tokens: T tokens, any T, all live.
      phase: int32, tokens of the current chunk read before; None when the first token begins a
        chunk (statically known, which spares the shift to the chunk grid).

    Returns:
      the state after the last token, with the start of its chunk, `y [T, V]`, and None in the
      place of the recurrent form's diagnostics.
    """
    if phase is None:
        return *_on_grid(memory, initial, head, tokens), None
    return *_off_grid(memory, initial, head, tokens, phase), None


def _split(x: jax.Array, length: int) -> jax.Array:
    return x.reshape(x.shape[0] // length, length, *x.shape[1:])


def keep(primitive, *_, name: str = "", **__) -> bool:
    """What the backward pass keeps besides the states at the starts of the chunks, instead of
    computing it again: the little that is dear."""
    return name == KEPT or primitive.name == "custom_linear_solve"


def _on_grid(memory, initial, head, tokens):
    """Whole chunks, then what is left as a shorter one."""
    size, total = memory.chunk_size, tokens.q.shape[0]
    whole = total - total % size
    head, ys = head._replace(start=None), []

    # The backward pass keeps the states at the starts of the chunks and recomputes their insides,
    # but for what `keep` names.
    @partial(jax.checkpoint, prevent_cse=False, static_argnums=2, policy=keep)
    def body(head, chunk, complete):
        return chunk_step(memory, initial, head, chunk, complete)

    if whole:
        chunks = jax.tree.map(lambda x: _split(x[:whole], size), tokens)
        head, y = jax.lax.scan(lambda head, chunk: body(head, chunk, True), head, chunks)
        ys.append(y.reshape(whole, -1))
    start = head.weights
    if whole < total:
        rest = jax.tree.map(lambda x: x[whole:], tokens)
        head, y = body(head, rest, False)
        ys.append(y)
        if rest.reset is not None:
            start = choose(marked(rest.reset), {name: initial[name] for name in start}, start)
    return head._replace(start={} if memory.exact else start), jnp.concatenate(ys)


def _off_grid(memory, initial, head, tokens, phase):
    """Lays the tokens on the chunk grid, `phase` empty places before them, and runs the chunks."""
    size, total = memory.chunk_size, tokens.q.shape[0]
    count = -(-(total + size - 1) // size)
    tokens = tokens._replace(live=jnp.ones(total, bool))

    def place(x):
        room = jnp.zeros((count * size, *x.shape[1:]), x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(room, x, phase, axis=0)

    def body(head, chunk):
        after, y = chunk_step(memory, initial, head, chunk, chunk.live[-1])
        start = head.start
        if chunk.reset is not None:
            start = choose(marked(chunk.reset), {name: initial[name] for name in start}, start)
        return after._replace(start=choose(chunk.live[-1], after.weights, start)), y

    chunks = jax.tree.map(lambda x: _split(place(x), size), tokens)
    head, y = jax.lax.scan(jax.checkpoint(body, prevent_cse=False, policy=keep), head, chunks)
    return head, jax.lax.dynamic_slice_in_dim(y.reshape(count * size, -1), phase, total)
