"""Memory and attention in one layer against the paper's equations, written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from miras_jax.memory import recall
from miras_jax.memory.gate import unit
from miras_jax.nn import ModelConfig
from miras_jax.nn.layers import rotate
from miras_jax.nn.memory_layer import Context
from miras_jax.nn.titans import MemoryAsContext, MemoryAsGate

B, T, DIM, HEADS, SEGMENT = 2, 10, 8, 2, 4
CONFIG = ModelConfig(
    memory="titans_mac",
    dim=DIM,
    heads=HEADS,
    chunk_size=3,
    persistent_tokens=2,
    segment=SEGMENT,
)
# Sums of some ten terms of size 1 in float32.
FLOAT32 = 1e-5


def layer_of(kind, memory: str):
    segment = SEGMENT if memory == "titans_mac" else None
    layer = kind(dataclasses.replace(CONFIG, memory=memory, segment=segment), rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(layer))))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), layer)


def positions(begin: int = 0, end: int = T) -> Context:
    return Context(jnp.broadcast_to(jnp.arange(begin, end), (B, end - begin)), None, None)


X = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, DIM)), jnp.float32)


def normed(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def gated(layer, y, m):
    gating = layer.gating
    m = normed(m) * gating.memory_norm.scale[...]
    return normed(y) * gating.attention_norm.scale[...] * m * jax.nn.sigmoid(m)


def test_memory_as_gate():
    """Eqs. 26-28: both read the same tokens."""
    layer = layer_of(MemoryAsGate, "titans_mag")
    y, _ = layer.attention(X, None, positions())
    m, _ = layer.memory(X, None, positions())
    got, _ = layer(X, None, positions())
    assert jnp.max(jnp.abs(got - gated(layer, y, m))) < FLOAT32


def test_memory_as_context():
    """Eqs. 21-25, segment by segment, attention by a mask over [persistent | recalled | tokens]."""
    layer = layer_of(MemoryAsContext, "titans_mac")
    heads = lambda z: z.reshape(B, -1, HEADS, DIM // HEADS)  # noqa: E731
    attention, parameters = layer.attention, layer.memory.parameters
    persistent = attention.parameters.weights
    state, outputs = layer.memory.init_state(B), []
    for begin in range(0, T, SEGMENT):
        here = positions(begin, min(begin + SEGMENT, T))
        x = X[:, here.positions[0, 0] : here.positions[0, -1] + 1]
        q = unit(jax.nn.silu(heads(layer.query(x))))
        h = recall(layer.memory.memory, parameters, state.memory, q)
        h = layer.output(layer.recalled_norm(h).reshape(x.shape))

        q = rotate(heads(attention.query(x)), here.positions, CONFIG.rotary_base)
        keys = [jnp.stack([persistent["persistent_keys"]] * B)]
        values = [jnp.stack([persistent["persistent_values"]] * B)]
        for z in (h, x):
            k = rotate(heads(attention.key(z)), here.positions, CONFIG.rotary_base)
            keys.append(jnp.swapaxes(k, 1, 2))
            values.append(jnp.swapaxes(heads(attention.value(z)), 1, 2))
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        always = jnp.ones((x.shape[1], 2), bool)
        mask = jnp.concatenate([always, causal, causal], axis=1)
        logits = jnp.einsum("bthk,bhsk->bhts", q, jnp.concatenate(keys, 2))
        logits = jnp.where(mask, logits / np.sqrt(DIM // HEADS), -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1)
        y = jnp.einsum("bhts,bhsv->bthv", weights, jnp.concatenate(values, 2))
        y = attention.output(y.reshape(x.shape))

        m, state = layer.memory(layer.learned_norm(y), state, here)
        outputs.append(gated(layer, y, m))
    got, _ = layer(X, None, positions())
    assert jnp.max(jnp.abs(got - jnp.concatenate(outputs, axis=1))) < FLOAT32


def test_a_segment_knows_the_earlier_ones_from_the_memory_alone():
    """What is recalled in the first segment comes of the learned start."""
    layer = layer_of(MemoryAsContext, "titans_mac")
    y, _ = layer(X, None, positions())
    state = layer.init_state(B)
    _, state = layer(X[:, :SEGMENT], state, positions(0, SEGMENT))
    # The second segment goes on as above from the state; with a fresh memory it does not.
    rest = positions(SEGMENT, T)
    z, _ = layer(X[:, SEGMENT:], state, rest)
    assert jnp.max(jnp.abs(y[:, SEGMENT:] - z)) < FLOAT32
    forgot = dataclasses.replace(state, memory=layer.init_state(B).memory)
    z, _ = layer(X[:, SEGMENT:], forgot, rest)
    assert jnp.max(jnp.abs(y[:, SEGMENT:] - z)) > 1e-3
    # Attention brings nothing over the border.
    forgot = dataclasses.replace(state, attention=layer.init_state(B).attention)
    z, _ = layer(X[:, SEGMENT:], forgot, rest)
    assert jnp.max(jnp.abs(y[:, SEGMENT:] - z)) < FLOAT32
