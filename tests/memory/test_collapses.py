"""Algebraic collapses: one choice at a limit is another choice.

In float64; 1e-12 of the largest entry is a thousand rounding errors. Limits that are only
approached carry their own tolerance, with its reason.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import miras_jax as mj
from miras_jax.memory import (
    KL,
    L1,
    L2,
    MLP,
    DotProduct,
    Gate,
    GradientDescent,
    Huber,
    L2Decay,
    Lp,
    Lq,
    Matrix,
    Memory,
    Momentum,
    NoRetention,
    log_decay,
)
from tests.cases import B, H, K, T, case, close, memory_of, read, weigh

pytestmark = pytest.mark.usefixtures("x64")
EXACT = 1e-12

YAAD = mj.zoo.get("yaad", chunk_size=4)


def same(memory, other, adapt=lambda inputs: inputs, rtol=EXACT, form="chunked"):
    """Both memories give the same y, state weights and gradients of what they share."""
    c = case(memory)
    inputs = c.inputs
    y, state = read(memory, c.params, inputs, form=form)
    z, other_state = read(other, c.params, adapt(inputs), form=form)
    close((y, state.weights), (z, other_state.weights), rtol=rtol)

    def loss(m, x):
        return weigh(read(m, c.params, x, form=form)[0])

    gradient = jax.grad(lambda x: loss(memory, x))(inputs)
    other_gradient = jax.grad(lambda x: loss(other, adapt(x)))(inputs)
    close({n: gradient[n] for n in "qkv"}, {n: other_gradient[n] for n in "qkv"}, rtol=rtol)


def with_gate(name, value):
    """Adds a gate that is constant."""
    return lambda inputs: {**inputs, name: jnp.full((B, T, H), value)}


def test_gated_deltanet_without_decay_is_deltanet():
    same(memory_of("deltanet"), memory_of("gated_deltanet"), with_gate("log_decay", 0.0))


def test_deltanet_with_dot_product_and_unit_step_is_linear_attention():
    other = dataclasses.replace(memory_of("deltanet"), bias=DotProduct())
    same(memory_of("linear_attention"), other, with_gate("step", 1.0))


def test_momentum_zero_is_gradient_descent():
    momentum = dataclasses.replace(YAAD, algorithm=Momentum(normalized=True))
    same(YAAD, momentum, with_gate("momentum", 0.0))
    exact = memory_of("deltanet")
    same(exact, dataclasses.replace(exact, algorithm=Momentum()), with_gate("momentum", 0.0))


@pytest.mark.parametrize("kind", ["coordinate", "norm", "switch"])
def test_huber_with_a_large_threshold_is_l2(kind):
    memory = dataclasses.replace(YAAD, bias=L2())
    same(memory, dataclasses.replace(YAAD, bias=Huber(kind=kind, threshold=1e9)))
    same(memory, dataclasses.replace(YAAD, bias=Huber(kind=kind, threshold=float("inf"))))
    same(memory, dataclasses.replace(YAAD, bias=Huber(kind=kind)), with_gate("threshold", 1e9))


def test_small_thresholds_are_l1():
    """At the same threshold the coordinate and the switch write delta sign(r), like l1 with a step
    delta times smaller. They differ for residuals within delta of zero; equality shows that there
    are none."""
    delta = 1e-6
    memory = dataclasses.replace(YAAD, bias=L1(eps=1e-30))
    shrink = lambda inputs: {**inputs, "step": inputs["step"] * delta}  # noqa: E731
    c = case(memory)
    expected, _ = read(memory, c.params, shrink(c.inputs))
    for kind in ("coordinate", "switch"):
        other = dataclasses.replace(YAAD, bias=Huber(kind=kind, threshold=delta, eps=1e-30))
        y, _ = read(other, c.params, c.inputs)
        close(y, expected, rtol=EXACT)


def test_gradient_of_momentum_at_zero():
    """Products of momenta may contain zeros: their gradient is still the difference quotient."""
    memory = dataclasses.replace(YAAD, algorithm=Momentum(normalized=True))
    c = case(memory)
    direction = jnp.asarray(np.random.default_rng(0).uniform(size=(B, T, H)))

    def loss(scale):
        y, _ = read(memory, c.params, {**c.inputs, "momentum": scale * direction})
        return weigh(y)

    gradient = jax.grad(loss)(0.0)
    # Central differences at 1e-5: the error is their third derivative's, 1e-10.
    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert abs(gradient - numeric) <= 1e-7 * abs(numeric)


def test_huber_norm_clips_the_residual():
    r = jnp.asarray([[3.0, 4.0], [0.3, 0.4]])
    g = Huber(kind="norm", threshold=1.0, eps=0.0).gradient(r, jnp.zeros_like(r), {})
    close(g, jnp.asarray([[0.6, 0.8], [0.3, 0.4]]), rtol=EXACT)


def test_lp_with_p_two_is_l2():
    same(dataclasses.replace(YAAD, bias=L2()), dataclasses.replace(YAAD, bias=Lp(p=2.0)))


def test_lp_gradients_are_those_of_their_loss():
    """The smooth form differentiates (r^2 + eps)^(p/2) / p; tanh gives the paper's product."""
    r = jnp.linspace(-2.0, 2.0, 41)
    zero = jnp.zeros_like(r)
    for p in (1.0, 1.5, 3.0, 4.0):
        loss = lambda r, p=p: jnp.sum((r * r + 1e-6) ** (p / 2)) / p  # noqa: E731
        close(Lp(p=p).gradient(r, zero, {}), jax.grad(loss)(r), rtol=EXACT)
        printed = np.tanh(10.0 * r) * np.sqrt(r * r + 1e-6) ** (p - 1)
        close(Lp(p=p, sharpness=10.0).gradient(r, zero, {}), printed, rtol=EXACT)


def test_lq_with_q_two_is_l2_retention():
    memory = dataclasses.replace(YAAD, retention=L2Decay())
    same(memory, dataclasses.replace(memory, retention=Lq(q=2.0, decay=log_decay())))
    chunk_reads = dataclasses.replace(memory, read="chunk")
    dual = Lq(q=2.0, form="dual", decay=log_decay())
    same(chunk_reads, dataclasses.replace(chunk_reads, retention=dual))


def test_lq_norm_link_keeps_the_norm_between_the_starts_and_has_degree_three_minus_q():
    link, layer = Lq(q=4.0, eps=0.0), MLP().layers(K, K)["layer_1"]
    a0 = jax.random.normal(jax.random.key(0), (K, 4 * K), jnp.float64)
    close(link.link(a0, a0, layer), a0, rtol=EXACT)
    close(link.link(10 * a0, a0, layer), 0.1 * a0, rtol=EXACT)


def test_lq_dual_link_is_the_gradient_of_half_the_squared_norm():
    """sign(A)|A|^(q-1)/|A|_q^(q-2) = grad |A|_q^2 / 2, up to the count of the power mean."""
    link, layer = Lq(q=4.0, form="dual", eps=0.0), MLP().layers(K, K)["layer_1"]
    a = jax.random.normal(jax.random.key(0), (K, 4 * K), jnp.float64)
    half_square = lambda a: jnp.mean(jnp.abs(a) ** 4) ** 0.5 / 2  # noqa: E731
    close(link.link(a, a, layer), jax.grad(half_square)(a) * a.size, rtol=1e-10)


def test_one_layer_mlp_without_norm_is_the_matrix_memory():
    """From the same start, which a matrix memory takes in its state."""
    memory = Memory(
        architecture=MLP(depth=1, norm=False, residual=False),
        retention=L2Decay(anchor="zero"),
        chunk_size=4,
    )
    matrix = dataclasses.replace(memory, architecture=Matrix())
    assert memory.exact
    assert matrix.exact
    c = case(memory)
    start = c.params.weights["layer_1"]
    y, state = read(memory, c.params, c.inputs)
    params = matrix.init(jax.random.key(0), heads=H, key_dim=K, value_dim=K)
    weights = {"memory": jnp.broadcast_to(start, (B, *start.shape))}
    begun = matrix.init_state(params, batch=B, weights=weights, dtype=jnp.float64)
    z, other = read(matrix, params, c.inputs, state=begun)
    close((y, state.weights["layer_1"]), (z, other.weights["memory"]), rtol=EXACT)


@pytest.mark.parametrize("anchor", ["zero", "initial"])
def test_kl_on_logits_is_the_printed_softmax(anchor):
    """W_t = c softmax(alpha log W_{t-1} - eta grad) token by token (Miras Eq. 27), for a matrix.

    Towards the start it is the same with log(W / W_0) in place of log W.
    """
    memory = Memory(retention=KL(decay=log_decay(), anchor=anchor), chunk_size=1, read="chunk")
    c = case(memory)
    _, state = read(memory, c.params, c.inputs)
    layer = memory.layers(K, K)["memory"]
    w = jnp.ones((B, H, K, K))  # the uniform start: c = inputs, every entry 1
    for t in range(T):
        k, v = c.inputs["k"][:, t], c.inputs["v"][:, t]
        g = jnp.einsum("bhk,bhv->bhkv", k, jnp.einsum("bhk,bhkv->bhv", k, w) - v)
        alpha = jnp.exp(c.inputs["log_decay"][:, t])[..., None, None]
        eta = c.inputs["step"][:, t][..., None, None]
        w = K * jax.nn.softmax(alpha * jnp.log(w) - eta * g, axis=-2)
    a0 = jnp.zeros((K, K))
    close(memory.retention.link(state.weights["memory"], a0, layer), w, rtol=EXACT)


def test_kl_keeps_the_mass_of_every_output():
    layer = MLP().layers(K, K)["layer_2"]
    a = 50 * jax.random.normal(jax.random.key(1), (layer.inputs, K), jnp.float64)
    w = KL().link(a, a, layer)
    assert (w >= 0).all()
    close(w.sum(0), jnp.full(K, layer.std * layer.inputs), rtol=EXACT)
    signed = KL(signed=True).link(a, a, layer)
    close(jnp.abs(signed).sum(0), jnp.full(K, layer.std * layer.inputs), rtol=1e-6)
    # sinh / cosh as written, where it does not overflow
    small = a / 50
    expected = jnp.sinh(small) / jnp.cosh(small).sum(0) * layer.std * layer.inputs
    close(KL(signed=True).link(small, small, layer), expected, rtol=EXACT)


def test_no_decay_is_a_decay_of_one():
    memory = dataclasses.replace(YAAD, retention=NoRetention())
    same(memory, YAAD, with_gate("log_decay", 0.0))


def test_anchors_agree_for_a_memory_that_starts_at_zero():
    memory = memory_of("gated_deltanet")
    zero = dataclasses.replace(memory, retention=L2Decay(anchor="zero", decay_first=True))
    same(memory, zero)


@pytest.mark.parametrize("per", ["key", "value"])
@pytest.mark.parametrize("deep", [False, True])
def test_equal_channels_are_one_decay(per, deep):
    """Channels that agree are the decay per head; if they do not, the forms still agree."""
    memory = YAAD if deep else dataclasses.replace(memory_of("deltanet"), retention=L2Decay())
    if per == "value" and not deep:
        memory = dataclasses.replace(memory, bias=DotProduct())
    gates = L2Decay(log_decay(per=per))
    other = dataclasses.replace(memory, retention=gates)
    spread = lambda x: {  # noqa: E731
        **x,
        "log_decay": jnp.broadcast_to(x["log_decay"][..., None], (B, T, H, K)),
    }
    same(memory, other, spread)
    c = case(other)
    results = [read(other, c.params, c.inputs, form=form) for form in ("recurrent", "chunked")]
    close(*results, rtol=1e-11)


@pytest.mark.parametrize("per", ["key", "value"])
def test_step_per_channel(per):
    algorithm = GradientDescent(step=Gate(per=per), normalized=True)
    other = dataclasses.replace(YAAD, algorithm=algorithm)
    spread = lambda x: {**x, "step": jnp.broadcast_to(x["step"][..., None], (B, T, H, K))}  # noqa: E731
    same(YAAD, other, spread)
    c = case(other)
    results = [read(other, c.params, c.inputs, form=form) for form in ("recurrent", "chunked")]
    close(*results, rtol=1e-11)


@pytest.mark.parametrize("read_at", ["token", "chunk"])
@pytest.mark.parametrize("depth", [1, 3])
def test_other_depths_and_reads(depth, read_at):
    """Forms agree, and packing holds, off the zoo's own combinations."""
    memory = Memory(
        architecture=MLP(depth=depth),
        bias=Lp(p=1.5),
        retention=L2Decay(anchor="zero"),
        algorithm=Momentum(),
        chunk_size=4,
        read=read_at,
        gradient="chunk",
    )
    c = case(memory)
    ids = jnp.asarray([[0] * 5 + [1] * 2 + [2] * (T - 7)] * B)
    results = [
        read(memory, c.params, c.inputs, form=form, segment_ids=ids)
        for form in ("recurrent", "chunked")
    ]
    close(*results, rtol=1e-11)


def test_key_and_value_widths_may_differ():
    for name in ("linear_attention", "deltanet", "gated_deltanet"):
        c = case(memory_of(name), value_dim=6)
        results = [read(c.memory, c.params, c.inputs, form=f) for f in ("recurrent", "chunked")]
        assert results[0][0].shape == (B, T, H, 6)
        close(*results, rtol=1e-11)
