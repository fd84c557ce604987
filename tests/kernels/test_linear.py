"""The chunk function of matrix memories, scanned in plain JAX, against the recurrent form."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import miras_jax as mj
from kernels_pallas.linear import linear_step, linear_tokens
from kernels_pallas.step import scan_reference
from tests.cases import cotangents
from tests.nights import nightly_but

NAMES = (
    "linear_attention retnet lightning_attention gla mamba2 hgrn2 "
    "deltanet gated_deltanet kda comba gdn2 rwkv7"
).split()
WAYS = list(itertools.product([False, True], [16, 64]))
ROWS = list({mj.zoo.get(name): name for name in reversed(NAMES)}.values())[::-1]
"""One name of each memory: models of one memory differ in their layers."""
B, H, K, V = 2, 2, 8, 6
T = 70
"""No multiple of a chunk."""
F32 = 1e-5
"""Worst of outputs, states and gradients relative to their largest entry: 3e-6 was seen where steps
of 2 meet repeated keys, 4e-7 elsewhere."""
BF16 = 2e-2
"""6e-3 was seen: operands are rounded to 8 bits, 4e-3."""
DOCUMENTS = np.zeros((B, T), np.int32)
DOCUMENTS[0] = np.searchsorted([5, 6, 7, 16, 32, 33, 48, 60, 64, 65], np.arange(T), side="right")
DOCUMENTS[1, 1:] = 1
"""Segment ids: documents of one token, several in a chunk, at a chunk's first token; and a first
document of one token before a long one."""


def inputs_of(memory, seed=0, tokens=T, dtype=np.float64, log_decay=None, step=None, keys=None):
    """q, k, v and gates `[B, T, H, ...]`, as a layer would give them."""
    rng = np.random.default_rng(seed)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def normal(*shape):
        return rng.normal(size=(B, tokens, H, *shape))

    inputs = {"q": unit(normal(K)), "k": unit(normal(K)), "v": normal(V)}
    if keys is not None:
        inputs["k"] = keys(inputs["k"])
    for name, gate in memory.gates.items():
        x = normal(*gate.shape((), K, V))
        inputs[name] = unit(x) if gate.is_input else np.asarray(gate.activate(jnp.asarray(x)))
    if "removal" in inputs:  # as RWKV-7's layer makes them, or the memory explodes
        inputs["removal"] = -inputs["k"]
        inputs["replacement"] = inputs["k"] / (1 + np.exp(-normal(K)))
    for name, given in (("log_decay", log_decay), ("step", step)):
        if given is not None and name in inputs:
            inputs[name] = given(inputs[name])
    return {name: jnp.asarray(x, dtype) for name, x in inputs.items()}


def by_step(memory, inputs, start, ids, chunk_size, precision="highest", target="tpu"):
    """y `[B, T, H, V]` and the final memory by the step, in chunks of padded tokens."""
    total = inputs["q"].shape[1]
    pad = -total % chunk_size

    def heads_first(x):
        return jnp.pad(jnp.moveaxis(x, 2, 1), [(0, 0), (0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 3))

    arrays = {name: heads_first(x) for name, x in inputs.items()}
    gates = {name: x for name, x in arrays.items() if name not in ("q", "k", "v")}
    tokens = linear_tokens(memory, arrays["q"], arrays["k"], arrays["v"], gates)
    marks = {}
    if ids is not None:
        reset = np.diff(ids, axis=1, prepend=ids[:, :1]) != 0
        marks["reset"] = jnp.pad(jnp.asarray(reset, jnp.int32), ((0, 0), (0, pad)))
    carry, y = scan_reference(
        linear_step(memory, precision, target),
        {"memory": start},
        {},
        tokens,
        marks,
        chunk_size=chunk_size,
        value_dim=V,
        dtype=inputs["v"].dtype,
    )
    return jnp.moveaxis(y[:, :, :total], 1, 2), carry["memory"]


def by_recurrence(memory, inputs, start, ids):
    params = memory.init(jax.random.key(0), heads=H, key_dim=K, value_dim=V)
    dtype = inputs["q"].dtype
    state = memory.init_state(params, batch=B, weights={"memory": start}, dtype=dtype)
    gates = {name: x for name, x in inputs.items() if name not in ("q", "k", "v")}
    arguments = (memory, params, inputs["q"], inputs["k"], inputs["v"], gates)
    y, state = mj.memorize(*arguments, state=state, segment_ids=ids, form="recurrent")
    return y, state.weights["memory"]


def pulled(read, inputs, start):
    """Outputs, and the gradients of their product with random numbers by everything."""

    @jax.jit
    def run(inputs, start):
        out, pull = jax.vjp(read, inputs, start)
        return out, pull(cotangents(out))

    (y, memory), (d_inputs, d_start) = run(inputs, start)
    leaves = {"y": y, "memory": memory, "d_start": d_start}
    leaves |= {f"d_{name}": d for name, d in d_inputs.items()}
    return {name: np.asarray(x, np.float64) for name, x in leaves.items()}


def start_of(seed=3):
    return np.random.default_rng(seed).normal(size=(B, H, K, V))


@functools.lru_cache
def expected(name, packed):
    memory = mj.zoo.get(name)
    ids = jnp.asarray(DOCUMENTS) if packed else None
    return pulled(
        lambda inputs, start: by_recurrence(memory, inputs, start, ids),
        inputs_of(memory),
        jnp.asarray(start_of()),
    )


def errors(got, wanted):
    """The largest error of each array, relative to its largest entry."""
    assert got.keys() == wanted.keys()
    return {
        name: np.abs(got[name] - x).max() / max(np.abs(x).max(), 1e-30)
        for name, x in wanted.items()
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("packed", "chunk_size"), nightly_but(WAYS, [(True, 16), (False, 64)]))
@pytest.mark.parametrize("name", ROWS)
def test_chunks_equal_tokens(name, packed, chunk_size):
    memory = mj.zoo.get(name)
    ids = DOCUMENTS if packed else None
    got = pulled(
        lambda inputs, start: by_step(memory, inputs, start, ids, chunk_size),
        inputs_of(memory),
        jnp.asarray(start_of()),
    )
    worst = errors(got, expected(name, packed))
    assert max(worst.values()) < 1e-11, worst


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["gla", "gated_deltanet", "rwkv7"])
def test_one_token_is_a_chunk(name):
    memory = mj.zoo.get(name)
    got = pulled(
        lambda inputs, start: by_step(memory, inputs, start, DOCUMENTS, 1),
        inputs_of(memory),
        jnp.asarray(start_of()),
    )
    worst = errors(got, expected(name, True))
    assert max(worst.values()) < 1e-11, worst


def in_float32(memory, inputs, precision="highest", target="tpu", ids=DOCUMENTS, chunk_size=64):
    """Outputs and gradients of the step in float32."""
    with jax.enable_x64(False):
        inputs = {name: jnp.asarray(x, jnp.float32) for name, x in inputs.items()}
        return pulled(
            lambda inputs, start: by_step(
                memory, inputs, start, ids, chunk_size, precision, target
            ),
            inputs,
            jnp.asarray(start_of(), jnp.float32),
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["gla", "gated_deltanet", "rwkv7"])
@pytest.mark.parametrize("target", ["tpu", "gpu"])
def test_float32(name, target):
    memory = mj.zoo.get(name)
    got = in_float32(memory, inputs_of(memory), target=target)
    worst = errors(got, expected(name, True))
    assert max(worst.values()) < F32, worst


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["retnet", "gla", "gated_deltanet", "kda", "rwkv7"])
def test_bfloat16(name):
    memory = mj.zoo.get(name)
    got = in_float32(memory, inputs_of(memory), "bfloat16")
    worst = errors(got, expected(name, True))
    assert 1e-4 < max(worst.values()) < BF16, worst


def correlated(cosine):
    """Keys of unit norm and that cosine, about, with each other."""

    def mix(k):
        common = np.zeros(K)
        common[0] = 1.0
        apart = k - k[..., :1] * common
        apart /= np.linalg.norm(apart, axis=-1, keepdims=True)
        return np.sqrt(cosine) * common + np.sqrt(1 - cosine) * apart

    return mix


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "kda"])
@pytest.mark.parametrize("cosine", nightly_but([0.0, 0.5, 0.9], [0.9]))
def test_keys_that_resemble_each_other(name, cosine):
    """Steps up to 2: L has entries of 2 cosine, and inverses by series diverge."""
    memory = mj.zoo.get(name)
    inputs = inputs_of(memory, step=lambda x: 2 * x, keys=correlated(cosine))
    start = jnp.asarray(start_of())
    wanted = pulled(lambda i, s: by_recurrence(memory, i, s, None), inputs, start)
    got = pulled(lambda i, s: by_step(memory, i, s, None, 64), inputs, start)
    worst = errors(got, wanted)
    assert max(worst.values()) < 1e-11, worst
    worst = errors(in_float32(memory, inputs, ids=None), wanted)
    assert max(worst.values()) < F32, worst


def extreme(x):
    """0 and -30, by token and channel, in no order."""
    return np.where(np.random.default_rng(5).random(x.shape) < 0.5, 0.0, -30.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, "tpu") for name in ROWS),
        *nightly_but([(name, "gpu") for name in ("gla", "gated_deltanet", "rwkv7")], []),
    ],
)
def test_extremes(name, target):
    """Decays of 0 and -30, steps of 0 and 2, repeated keys and zero keys."""
    memory = mj.zoo.get(name)

    def keys(k):
        k = k.copy()
        k[:, 10:20] = k[:, :1]
        k[:, 30:35] = 0.0
        return k

    inputs = inputs_of(
        memory,
        log_decay=extreme,
        step=lambda x: np.where(np.random.default_rng(6).random(x.shape) < 0.5, 0.0, 2.0),
        keys=keys,
    )
    start = jnp.asarray(start_of())
    wanted = pulled(lambda i, s: by_recurrence(memory, i, s, None), inputs, start)
    got = in_float32(memory, inputs, target=target, ids=None)
    worst = errors(got, wanted)
    assert max(worst.values()) < F32, worst


@pytest.mark.parametrize("name", NAMES)
def test_takes(name):
    memory = mj.zoo.get(name)
    assert linear_step(memory, "highest").decay_first == memory.retention.decay_first


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dfw", "per value channel"),
        ("longhorn", "Entries"),
        ("ttt_mlp", "architecture"),
        ("delta_product", "SeveralSteps"),
        ("mesanet", "NormalEquations"),
    ],
)
def test_says_what_it_does_not_have(name, reason):
    with pytest.raises(NotImplementedError, match=reason):
        linear_step(mj.zoo.get(name), "highest")


def test_channels_need_a_power_of_two():
    memory = mj.zoo.get("gla")
    inputs = inputs_of(memory, dtype=np.float32)
    with pytest.raises(ValueError, match="power of two"):
        by_step(memory, inputs, jnp.zeros((B, H, K, V)), None, 48)
