"""The chunked form: many tokens at once, the memory carried from chunk to chunk.

`chunk_step` is the one chunk function of the library: pure `jnp`, one head, one row. A scan drives
it here; other drivers may loop it on chip.

Inside a chunk every gradient is taken at the memory of the chunk's start (Miras section 5.4), or,
for a linear memory with an affine bias, at the memory of its own token by a unit lower triangular
solve. Reads see every write up to their own token.
"""

import jax
import jax.numpy as jnp

from miras_jax.memory import coefficients as co
from miras_jax.memory import layer as la
from miras_jax.memory.head import Chunk, Head, choose
from miras_jax.memory.memory import Memory, Weights
from miras_jax.memory.triangular import solve_unit_lower


def chunk_step(
    memory: Memory, initial: Weights, head: Head, chunk: Chunk
) -> tuple[Head, jax.Array]:
    """Reads a chunk and learns from it.

    Args:
      memory: the four choices.
      initial: A_0 by layer `[inputs, outputs]`.
      head: the state before the chunk's first token.
      chunk: C tokens.

    Returns:
      the state after the chunk's last token (its `start` is the one passed in), and `y [C, V]`.
    """
    packed = chunk.reset is not None
    docs = co.documents(chunk.q.shape[0], chunk.reset, chunk.live)
    layers = memory.layers(chunk.k.shape[-1], chunk.v.shape[-1])
    gates = {
        name: la.layer_gates(layer, memory.gates, chunk.gates, docs.live, chunk.q.dtype)
        for name, layer in layers.items()
    }
    momentum = None
    if "momentum" in memory.gates:
        momentum = co.products(jnp.where(docs.live, chunk.gates["momentum"], 1.0), docs)
    coefs = {name: co.coefficients(g.log_decay, momentum, docs) for name, g in gates.items()}
    anchored = memory.retention.decay is not None and memory.retention.anchor == "initial"
    memories = {
        name: la.LayerMemory(
            start=head.weights[name],
            initial=initial[name],
            anchor=initial[name] if anchored and layer.std is not None else None,
            momentum=head.momentum.get(name),
        )
        for name, layer in layers.items()
    }
    start = head.weights if head.start is None else head.start

    def start_linear(name, x):
        """The layer at the start of the chunk, or of the document that began inside it."""
        y = x @ memory.retention.link(start[name], initial[name], layers[name])
        if not packed:
            return y
        y0 = x @ memory.retention.link(initial[name], initial[name], layers[name])
        return jnp.where(docs.fresh[:, None], y0, y)

    # Write: layer by layer, token i adds the outer product -u_i d_i^T, steps included.
    if memory.exact:
        inputs = dict.fromkeys(layers, chunk.k)  # one layer, which reads the keys
    else:
        inputs, cotangents = _chunk_gradients(memory, layers, start_linear, chunk)
    u = {
        name: gates[name].step_in
        * memory.algorithm.direction(inputs[name], memory.retention.gain(layer))
        for name, layer in layers.items()
    }
    if memory.exact:
        cotangents = {
            name: _exact_gradients(
                memory, chunk, u[name], memories[name], coefs[name], gates[name].axis
            )
            for name in layers
        }
    d = {
        name: x if gates[name].step_out is None else x * gates[name].step_out
        for name, x in cotangents.items()
    }

    # Read: the layer as it stands after each token's own write.
    def token_linear(name, x):
        c, axis = coefs[name], gates[name].axis
        y = la.read_start(x, memories[name], c, axis, packed)
        y -= la.read_writes(x, u[name], d[name], c.write, axis)
        factor = memory.retention.factor(start[name], initial[name])
        if packed:
            fresh_factor = memory.retention.factor(initial[name], initial[name])
            factor = jnp.where(docs.fresh[:, None], fresh_factor, factor)
        return factor * y

    y = memory.architecture.apply(token_linear if memory.read == "token" else start_linear, chunk.q)

    # Carry.
    weights = {
        name: la.end(u[name], d[name], memories[name], coefs[name], gates[name].axis, packed)
        for name in layers
    }
    carried = {}
    if momentum is not None:
        between, from_start = momentum
        carried = {
            name: from_start[-1] * s - (u[name] * between[-1][:, None]).T @ d[name]
            for name, s in head.momentum.items()
        }
    return Head(weights, carried, head.start), y


def _chunk_gradients(memory, layers, start_linear, chunk: Chunk) -> tuple[Weights, Weights]:
    """Inputs `[C, in]` and cotangents `[C, out]` of every layer at the start of the chunk."""

    def predict(taps):
        inputs = {}

        def linear(name, x):
            inputs[name] = x
            return start_linear(name, x) + taps[name]

        return memory.architecture.apply(linear, chunk.k), inputs

    shape = (chunk.k.shape[0],)
    taps = {name: jnp.zeros((*shape, x.outputs), chunk.k.dtype) for name, x in layers.items()}
    prediction, backward, inputs = jax.vjp(predict, taps, has_aux=True)
    (cotangents,) = backward(memory.bias.gradient(prediction, chunk.v, chunk.gates))
    return inputs, cotangents


def _exact_gradients(memory, chunk: Chunk, u, start: la.LayerMemory, c: co.Coefficients, axis):
    """Gradients `d_t = c pred_t - v_t` `[C, V]` of a linear memory, each at its own token's memory.

    `pred_t = recalled_t - sum_{i<t} coupling[t,i] d_i`, so `(I + c coupling) d = c recalled - v`
    with a strictly lower triangular coupling.
    """
    curvature = memory.bias.curvature
    if curvature == 0.0:
        return -chunk.v
    earlier = co.before_write(c) if memory.retention.decay_first else co.before(c, chunk.reset)
    recalled = la.read_start(chunk.k, start, earlier, axis, chunk.reset is not None)
    coupling = la.scores(chunk.k, u, earlier.write, axis)
    return solve_unit_lower(curvature * coupling, curvature * recalled - chunk.v)


def chunked(
    memory: Memory,
    initial: Weights,
    head: Head,
    tokens: Chunk,
    phase: jax.Array | None,
) -> tuple[Head, jax.Array]:
    """Runs `chunk_step` over the tokens of one head.

    Args:
      memory: the four choices.
      initial: A_0 by layer.
      head: the state before the first token.
      tokens: T tokens, any T, all live.
      phase: int32, tokens of the current chunk read before; None when the first token begins a
        chunk (statically known, which spares the shift to the chunk grid).

    Returns:
      the state after the last token, with the start of its chunk, and `y [T, V]`.
    """
    if phase is None:
        return _on_grid(memory, initial, head, tokens)
    return _off_grid(memory, initial, head, tokens, phase)


def _split(x: jax.Array, length: int) -> jax.Array:
    return x.reshape(x.shape[0] // length, length, *x.shape[1:])


def _on_grid(memory, initial, head, tokens):
    """Whole chunks, then what is left as a shorter one."""
    size, total = memory.chunk_size, tokens.q.shape[0]
    whole = total - total % size
    head, ys = head._replace(start=None), []

    def body(head, chunk):
        return chunk_step(memory, initial, head, chunk)

    # The backward pass keeps the states at the starts of the chunks and recomputes their insides.
    body = jax.checkpoint(body, prevent_cse=False)
    if whole:
        chunks = jax.tree.map(lambda x: _split(x[:whole], size), tokens)
        head, y = jax.lax.scan(body, head, chunks)
        ys.append(y.reshape(whole, -1))
    start = head.weights
    if whole < total:
        rest = jax.tree.map(lambda x: x[whole:], tokens)
        head, y = body(head, rest)
        ys.append(y)
        if rest.reset is not None:
            start = choose(rest.reset.any(), initial, start)
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
        after, y = chunk_step(memory, initial, head, chunk)
        start = head.start
        if chunk.reset is not None:
            start = choose(chunk.reset.any(), initial, start)
        return after._replace(start=choose(chunk.live[-1], after.weights, start)), y

    chunks = jax.tree.map(lambda x: _split(place(x), size), tokens)
    head, y = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), head, chunks)
    return head, jax.lax.dynamic_slice_in_dim(y.reshape(count * size, -1), phase, total)


def _split(x: jax.Array, length: int) -> jax.Array:
    return x.reshape(x.shape[0] // length, length, *x.shape[1:])
