"""Each row's layer against its published equations, written token by token in numpy.

The references take from the layer nothing but its parameters. Tolerances: float32 layers against
float64 loops, some hundred roundings of 6e-8 on outputs of size 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from miras_jax import zoo
from miras_jax.memory.chunk_algorithm import QUINTIC
from miras_jax.nn import MemoryLayer, ModelConfig
from miras_jax.nn.memory_layer import Context
from miras_jax.zoo.row import keep, norm_and_gate

CHUNK, T, H = 4, 7, 2
CONFIG = ModelConfig(dim=16, depth=3, heads=H, vocab_size=32, ff_dim=32, gate_rank=3)
# Rows with functions of their own round the memory; tests/nn/test_model.py has all rows decode,
# pack and learn.
OWN = [row.name for row in zoo.table() if row.layer.prepare is not keep]
FINISHED = [row.name for row in zoo.table() if row.layer.finish is not norm_and_gate]


def config_of(name: str, **changes) -> ModelConfig:
    if hasattr(zoo.row(name).memory, "chunk_size"):
        changes["chunk_size"] = CHUNK
    return dataclasses.replace(CONFIG, memory=name, **changes)


def shaken(module):
    """The module with every parameter moved, so that none is where it starts."""
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(module))))
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), module)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def unit(x):
    return x / np.sqrt(np.sum(x * x, -1, keepdims=True) + 1e-6)


class Reference:
    """A layer's parameters as float64 numpy, and its projections of the tokens x `[T, dim]`."""

    def __init__(self, layer, x):
        self.layer, self.x = layer, x
        self.index, self.depth = 1, layer.config.depth

    @staticmethod
    def array(parameter):
        return np.asarray(parameter[...], np.float64)

    def shifted(self, name):
        mix = self.array(self.layer.shift.mix[name])
        before = np.concatenate([np.zeros((1, self.x.shape[1])), self.x[:-1]])
        return self.x * (1 - mix) + before * mix

    def project(self, projection, heads=H, convolution=None, x=None, activation=silu):
        z = (self.x if x is None else x) @ self.array(projection.kernel)
        if convolution:
            kernel = self.array(self.layer.convolutions[convolution].kernel)
            padded = np.concatenate([np.zeros((3, z.shape[1])), z])
            z = activation(sum(kernel[i] * padded[i : i + T] for i in range(4)))
        return z.reshape(T, heads, -1)

    def qkv(self, heads=H, convolution=True, activation=silu):
        layer = self.layer
        return [
            self.project(
                p,
                n,
                convolution and name not in layer.config.layer.not_convolved and name,
                activation=activation,
            )
            for name, p, n in (
                ("query", layer.query, heads),
                ("key", getattr(layer, "key", layer.query), heads),
                ("value", layer.value, H),
            )
        ]

    def logits(self, name, x=None, hidden=lambda x: x):
        """Of a gate: `[T, H]` or `[T, H, channels]`."""
        gate, x = self.layer.gates[name], self.x if x is None else x
        if hasattr(gate, "reduce"):
            x = hidden(x @ self.array(gate.reduce.kernel))
        z = x @ self.array(gate.expand.kernel) + self.array(gate.expand.bias)
        return z if gate.gate.per == "head" else z.reshape(T, H, -1)

    def learned(self, name):
        return self.array(self.layer.learned[name].logits)

    def norm(self, y, eps=1e-6):
        norm = self.layer.output_norm
        if hasattr(norm, "bias"):
            y = y - y.mean(-1, keepdims=True)
        y = y / np.sqrt(np.mean(y * y, -1, keepdims=True) + eps) * self.array(norm.scale)
        return y + self.array(norm.bias) if hasattr(norm, "bias") else y

    def gate(self, activation=silu):
        return activation(self.project(self.layer.output_gate))

    def out(self, y):
        return y.reshape(T, -1) @ self.array(self.layer.output.kernel)


def scan(step, q, keys, values):
    """Outputs `q_t S_t` with S_t = step(t, h, S_{t-1})."""
    y = np.zeros((T, H, values))
    for h in range(H):
        s = np.zeros((keys, values))
        for t in range(T):
            s = step(t, h, s)
            y[t, h] = q[t, h] @ s
    return y


def hebbian(q, k, v, decay):
    """S_t = decay_t * S_{t-1} + k_t^T v_t; decay `[T, H, K or 1, V or 1]`."""
    decay = np.broadcast_to(decay, (T, H, *np.shape(decay)[2:]))
    write = np.einsum("thk,thv->thkv", k, v)
    return scan(lambda t, h, s: decay[t, h] * s + write[t, h], q, k.shape[-1], v.shape[-1])


def delta(q, k, v, step, decay=None, address=None):
    """S' = decay_t S, S_t = S' + step_t k_t^T (v_t - address_t S')."""
    decay = np.ones((T, H, 1)) if decay is None else decay.reshape(T, H, -1)
    address = k if address is None else address

    def write(t, h, s):
        s = decay[t, h][:, None] * s
        return s + step[t, h] * np.outer(k[t, h], v[t, h] - address[t, h] @ s)

    return scan(write, q, k.shape[-1], v.shape[-1])


def rotary(x, positions):
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * 10_000.0 ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def mamba_decay(r):
    rate = np.geomspace(1, 16, H) * np.exp(r.learned("log_rate"))
    dt = softplus(r.logits("dt"))
    return dt, np.exp(-dt * (rate if dt.ndim == 2 else rate[:, None]))


def linear_attention(r):
    q, k, v = r.qkv(convolution=None)
    q, k = (np.where(z > 0, z + 1, np.exp(np.minimum(z, 0))) for z in (q, k))
    return r.out(r.norm(hebbian(q, k, v, np.ones((1, 1, 1, 1)))))


def retnet(r):
    q, k, v = r.qkv(convolution=None)
    q, k = rotary(q, np.arange(T)), rotary(k, np.arange(T))
    gamma = (1 - 2.0 ** (-5 - np.arange(H))).reshape(1, H, 1, 1)
    assert v.shape[-1] == 2 * k.shape[-1]
    return r.out(r.norm(hebbian(q * k.shape[-1] ** -0.5, k, v, gamma)) * r.gate())


def lightning_attention(r):
    q, k, v = (silu(z) for z in r.qkv(convolution=None))
    slope = np.array([2.0**-4, 2.0**-8]) * (1 - r.index / (r.depth - 1) + 1e-5)
    y = hebbian(q, k, v, np.exp(-slope).reshape(1, H, 1, 1))
    return r.out(r.norm(y) * r.gate(sigmoid))


def dfw(r):
    q, k, v = r.qkv(convolution=None)
    # exp(-softplus(x)) is sigmoid(-x).
    rows, columns = sigmoid(-r.logits("log_decay")), sigmoid(-r.logits("log_value_decay"))
    return r.out(r.norm(hebbian(q, k, v, rows[..., None] * columns[:, :, None])))


def gla(r):
    q, k, v = r.qkv(convolution=None)
    alpha = sigmoid(-r.logits("log_decay")) ** (1 / 16)
    y = hebbian(q * k.shape[-1] ** -0.5, k, v, alpha[..., None])
    assert 2 * k.shape[-1] == v.shape[-1]
    return r.out(r.norm(y) * r.gate())


def mamba2(r):
    c, b, x = r.qkv(heads=1)
    c, b = (np.repeat(z, H, axis=1) for z in (c, b))
    dt, decay = mamba_decay(r)
    y = hebbian(c, b, x * dt[..., None], decay[..., None, None])
    return r.out(r.norm((y + (1 + r.learned("skip"))[:, None] * x) * r.gate()))


def hgrn2(r):
    q, f, v = r.qkv(convolution=None)
    bound = r.index / r.depth
    f = bound + (1 - bound) * sigmoid(f)
    return r.out(r.norm(hebbian(silu(q) * q.shape[-1] ** -0.5, 1 - f, v, f[..., None])))


def deltanet(r):
    q, k, v = r.qkv()
    return r.out(r.norm(delta(unit(q), unit(k), v, sigmoid(r.logits("step")))))


def gated_deltanet(r):
    q, k, v = r.qkv()
    _, decay = mamba_decay(r)
    y = delta(unit(q), unit(k), v, sigmoid(r.logits("step")), decay)
    return r.out(r.norm(y) * r.gate())


def kda(r):
    q, k, v = r.qkv()
    _, decay = mamba_decay(r)
    y = delta(unit(q), unit(k), v, sigmoid(r.logits("step")), decay)
    return r.out(r.norm(y) * sigmoid(r.logits("gate")))


def gdn2(r):
    q, k, v = r.qkv()
    q, k = unit(q), unit(k)
    _, decay = mamba_decay(r)
    erase, write = sigmoid(r.logits("erase")), sigmoid(r.logits("write"))
    y = delta(q, k, write * v, np.ones((T, H)), decay, address=erase * k)
    return r.out(r.norm(y) * sigmoid(r.logits("gate")))


def comba(r):
    q, k, v = r.qkv()
    q, k = unit(q), unit(k)
    p = sigmoid(1 + r.learned("feedback"))[:, None] * k
    q = q - (0.02 + r.learned("correction"))[:, None] * k
    _, decay = mamba_decay(r)
    y = delta(q, k, v, sigmoid(r.logits("step")), decay, address=p)
    return r.out(r.norm(y) * r.gate(sigmoid))


def products(r, decay):
    q, k, v = r.qkv()
    k2 = r.project(r.layer.inputs["key_2"], convolution="key_2")
    v2 = r.project(r.layer.inputs["value_2"], convolution="value_2")
    keys, values = (unit(k), unit(k2)), (v, v2)
    steps = [2 * sigmoid(r.logits(name)) for name in ("step", "step_2")]

    def write(t, h, s):
        s = decay[t, h] * s
        for key, value, step in zip(keys, values, steps, strict=True):
            s = s + step[t, h] * np.outer(key[t, h], value[t, h] - key[t, h] @ s)
        return s

    y = scan(write, unit(q), k.shape[-1], v.shape[-1])
    return r.out(r.norm(y) * r.gate())


def delta_product(r):
    return products(r, np.ones((T, H)))


def gated_delta_product(r):
    return products(r, mamba_decay(r)[1])


def longhorn(r):
    q, k, v = r.qkv(heads=1)
    q, k = (np.repeat(z, H, axis=1) for z in (q, k))
    beta = sigmoid(r.logits("step"))
    e = beta / (1 + beta * np.sum(k * k, -1, keepdims=True))
    keep = 1 - k[..., :, None] ** 2 * e[..., None, :]
    y = hebbian(q, k, e * v, keep) + (1 + r.learned("skip")) * v
    return r.out(y * r.gate())


def rwkv7(r):
    layer = r.layer
    q, k, v = (
        r.project(p, x=r.shifted(name))
        for name, p in (("query", layer.query), ("key", layer.key), ("value", layer.value))
    )
    w = np.exp(-0.606531 * sigmoid(r.logits("decay", r.shifted("decay"), np.tanh)))
    rate = sigmoid(r.logits("rate", r.shifted("rate")))
    gate = r.logits("gate", r.shifted("gate"), sigmoid)
    removed = unit(k * (1 + r.learned("removal_scale")))
    key = k * (1 + (1 + r.learned("key_scale")) * (rate - 1))

    def write(t, h, s):
        removal = np.outer(removed[t, h] * rate[t, h], removed[t, h] @ s)
        return w[t, h][:, None] * s - removal + np.outer(key[t, h], v[t, h])

    y = scan(write, q, k.shape[-1], v.shape[-1])
    bonus = np.sum(q * r.learned("bonus") * key, -1, keepdims=True) * v
    return r.out((r.norm(y) + bonus) * gate)


def mesanet(r):
    q, k, v = r.qkv()
    assert np.array_equal(v, r.project(r.layer.value))
    q, k = unit(q), unit(k)
    decay, step = sigmoid(-r.logits("log_decay")), sigmoid(r.logits("step"))
    ridge = softplus(r.learned("ridge")) + 0.25
    y = np.zeros(v.shape)
    for h in range(H):
        normal, cross = 0.0, 0.0
        for t in range(T):
            normal = decay[t, h] * normal + step[t, h] * np.outer(k[t, h], k[t, h])
            cross = decay[t, h] * cross + step[t, h] * np.outer(k[t, h], v[t, h])
            y[t, h] = np.linalg.solve(normal + np.diag(ridge[h]), q[t, h]) @ cross
    return r.out(r.norm(y))


def ttt(r, rate):
    """Gradients of the chunk by jax, in float64."""
    q, k, v = r.qkv(activation=lambda x: x)
    place = np.arange(T) % CHUNK
    q, k = rotary(q, place), rotary(k, place)
    step = sigmoid(r.logits("step")) * rate / k.shape[-1]
    lift = np.maximum(1 / (place[:, None] + 1) + r.learned("offset")[place], 0)
    start = {name: r.array(p) for name, p in r.layer.start.items()}
    deep = "layer_2" in start

    def inner(w, x):
        y = x @ w["layer_1"] + w["bias_1"][0]
        if deep:
            y = jax.nn.gelu(y) @ w["layer_2"] + w["bias_2"][0]
        y = y - y.mean()
        y = y / jnp.sqrt(jnp.mean(y * y) + 1e-6)
        return x + y * w["norm_scale"][0] + w["norm_bias"][0]

    def loss(w, key, value):
        return jnp.sum((inner(w, key) - value) ** 2) / 2

    gradient, read = jax.jit(jax.grad(loss)), jax.jit(inner)
    y = np.zeros(v.shape)
    for h in range(H):
        w = {name: x[h] for name, x in start.items()}
        for t in range(T):
            if place[t] == 0:
                first, total = w, {name: 0.0 for name in w if "norm" not in name}
            g = gradient(first, k[t, h], v[t, h])
            total = {name: total[name] + step[t, h] * g[name] for name in total}
            w = {**first, **{name: first[name] - lift[t, h] * total[name] for name in total}}
            y[t, h] = read(w, q[t, h])
    gelu = r.gate(lambda x: np.asarray(jax.nn.gelu(x)))
    return r.out(r.norm(y) * gelu)


def ttt_linear(r):
    return ttt(r, rate=1.0)


def ttt_mlp(r):
    return ttt(r, rate=0.1)


def lact(r):
    """Gradients of the chunk by jax, in float64; one update, after the first chunk."""
    q, k, v = r.qkv(convolution=None)
    q = q * (1 + r.learned("query_scale")) + r.learned("query_shift")
    k = k * (1 + r.learned("key_scale")) + r.learned("key_shift")
    q, k, v = unit(silu(q)), unit(silu(k)), silu(v)
    q, k = rotary(q, np.arange(T)), rotary(k, np.arange(T))
    names = {"gate": "step_gate", "up": "step_up", "down": "step"}
    steps = {layer: softplus(r.logits(gate)) for layer, gate in names.items()}

    def inner(w, x):
        return (jax.nn.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"]

    gradient = jax.jit(jax.grad(lambda w, key, value: -inner(w, key) @ value))
    y = np.zeros(v.shape)
    for h in range(H):
        w = first = {name: r.array(p)[h] for name, p in r.layer.start.items()}
        sums = dict.fromkeys(w, 0.0)
        for t in range(CHUNK):
            g = gradient(w, k[t, h], v[t, h])
            sums = {name: sums[name] + steps[name][t, h] * np.asarray(g[name]) for name in w}
        # The momentum of the chunk before it is zero.
        moved = {name: w[name] + orthogonal(-sums[name]) for name in w}
        norms = {name: np.linalg.norm(first[name], axis=0) for name in w}
        second = {n: m / np.linalg.norm(m, axis=0) * norms[n] for n, m in moved.items()}
        for t in range(T):
            y[t, h] = inner(first if t < CHUNK else second, q[t, h])
    return r.out(r.norm(y) * silu(r.logits("output_scale"))[..., None])


def orthogonal(x):
    """Five Newton-Schulz steps."""
    x = x / (np.linalg.norm(x) + 1e-7)
    for a, b, c in QUINTIC:
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


REFERENCES = {
    f.__name__: f
    for f in (
        linear_attention,
        retnet,
        lightning_attention,
        dfw,
        gla,
        mamba2,
        hgrn2,
        deltanet,
        gated_deltanet,
        kda,
        gdn2,
        comba,
        delta_product,
        gated_delta_product,
        longhorn,
        rwkv7,
        mesanet,
        ttt_linear,
        ttt_mlp,
        lact,
    )
}


def test_every_row_with_functions_of_its_own_has_a_reference():
    assert {*OWN, *FINISHED} <= set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_layer_equals_the_published_equations(name):
    layer = shaken(MemoryLayer(config_of(name), rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(1, T, 16))
    context = Context(jnp.arange(T)[None], None, None, layer=jnp.asarray(1))
    got, _ = jax.jit(lambda layer, x: layer(x, None, context))(layer, jnp.asarray(x, jnp.float32))
    with jax.enable_x64(True):
        expected = REFERENCES[name](Reference(layer, x[0]))
    # Five Newton-Schulz steps make the rounding in directions that the gradient of a chunk of four
    # tokens does not have 500 times larger.
    tolerance = 1e-2 if name == "lact" else 2e-5
    assert np.abs(np.asarray(got[0]) - expected).max() < tolerance * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", OWN)
def test_bfloat16_layer_trains_from_its_initial_weights(name):
    """Decays of almost nothing, gates of zero and zero constants included."""
    layer = MemoryLayer(config_of(name, dtype="bfloat16"), rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, T, 16)), jnp.bfloat16)
    context = Context(jnp.arange(T)[None], None, None, layer=jnp.asarray(0))

    def loss(layer, x):
        y, _ = layer(x, None, context)
        return jnp.mean(jnp.square(y.astype(jnp.float32))), y

    (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(layer, x)
    assert y.dtype == jnp.bfloat16
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        assert g.dtype == jnp.float32
        assert jnp.all(jnp.isfinite(g)), jax.tree_util.keystr(path)
