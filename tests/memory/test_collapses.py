"""Algebraic collapses: one choice at a limit is another choice.

In float64; 1e-12 of the largest entry is a thousand rounding errors. Limits that are only
approached carry their own tolerance, with its reason.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from miras_jax.memory import (
    KL,
    L1,
    L2,
    MLP,
    Bregman,
    ChunkDescent,
    Decoupled,
    DotProduct,
    ElasticNet,
    Entries,
    Gate,
    GradientDescent,
    Huber,
    Implicit,
    KLDivergence,
    L2Decay,
    Lp,
    Lq,
    Matrix,
    Memory,
    Momentum,
    Muon,
    NoRetention,
    NormalEquations,
    Optax,
    Removal,
    Robust,
    SeveralSteps,
    SlidingWindowAttention,
    Vector,
    log_decay,
)
from tests.cases import CHUNK, B, H, K, T, case, close, memory_of, read
from tests.laws import WHOLE, normal, pull, zeros

pytestmark = pytest.mark.usefixtures("x64")
EXACT = 1e-12

DEEP = memory_of("yaad", bias=L2())
DELTANET = memory_of("deltanet")
ONE_TOKEN = {"chunk_size": 1, "read": "commit"}


def same(memory, other, adapt=lambda inputs: inputs, rtol=EXACT, first=lambda inputs: inputs):
    """Both memories give the same y, the same gradients of all inputs of the first, and, where both
    have them, the same weights.

    `adapt` makes the inputs of the other memory of those of the first, which `first` may restrict.
    """
    c = case(memory, tokens=WHOLE)
    form = next(f for f in ("chunked", "recurrent") if f in memory.forms and f in other.forms)
    (y_bar,) = normal(c.inputs["v"], seed=1)

    def run(memory, adapt):
        inputs, back = jax.vjp(adapt, c.inputs)
        state = jax.eval_shape(lambda: read(memory, c.params, inputs)[1])
        got = pull(memory, form, c.params, None, inputs, None, [y_bar, *zeros(state)])
        return got.y, got.state, back(got.inputs)[0]

    (y, state, gradients), (z, other_state, others) = (
        run(memory, first),
        run(other, lambda x: adapt(first(x))),
    )
    close((y, gradients), (z, others), rtol=rtol)
    if hasattr(state, "weights"):
        shared = state.weights.keys() & other_state.weights.keys()
        assert shared
        close(*({n: s.weights[n] for n in shared} for s in (state, other_state)), rtol=rtol)


def choose(memory, **choices):
    return dataclasses.replace(memory, **choices)


def constant(**values):
    """Adds gates per head that are constant."""
    gates = {name: jnp.full((B, WHOLE, H), value) for name, value in values.items()}
    return lambda inputs: {**inputs, **gates}


def spread(x):
    """A gate per head as one per channel, all equal."""
    return jnp.broadcast_to(x[..., None], (*x.shape, K))


def by_channel(*names):
    return lambda x: {**x, **{name: spread(x[name]) for name in names}}


# Retention


def test_gated_deltanet_without_decay_is_deltanet():
    """exp(0) = 1."""
    same(DELTANET, memory_of("gated_deltanet"), constant(log_decay=0.0))


def test_no_decay_is_a_decay_of_one():
    """rho = 1, towards the start too."""
    same(choose(DEEP, retention=NoRetention()), DEEP, constant(log_decay=0.0))


def test_anchors_agree_for_a_memory_that_starts_at_zero():
    """0 + rho (A - 0) = rho A."""
    memory = memory_of("gated_deltanet")
    same(memory, choose(memory, retention=L2Decay(anchor="zero", decay_first=True)))


def test_kda_with_equal_channels_is_gated_deltanet():
    """diag(rho, .., rho) = rho."""
    other = choose(memory_of("kda"), retention=L2Decay(log_decay("key"), decay_first=True))
    same(memory_of("gated_deltanet"), other, by_channel("log_decay"))


@pytest.mark.parametrize("per", ["key", "value"])
@pytest.mark.parametrize("deep", [False, True])
def test_equal_channels_are_one_decay(per, deep):
    """Channels that agree are the decay per head."""
    memory = DEEP if deep else choose(DELTANET, retention=L2Decay())
    if per == "value" and not deep:
        memory = choose(memory, bias=DotProduct())
    other = choose(memory, retention=L2Decay(log_decay(per=per)))
    same(memory, other, by_channel("log_decay"))


def test_decaying_fast_weights_without_value_decay_are_gla():
    """f_i z_j = f_i."""
    dfw = lambda x: {**x, "log_value_decay": 0 * x["k"]}  # noqa: E731
    same(memory_of("gla"), memory_of("dfw"), dfw)


def test_decaying_fast_weights_with_equal_gates_decay_by_the_square():
    """f_i z_j = rho^2."""
    memory = Memory(
        bias=DotProduct(), retention=L2Decay(), algorithm=GradientDescent(step=None), chunk_size=4
    )

    def halves(x):
        half = spread(x["log_decay"] / 2)
        return {**x, "log_decay": half, "log_value_decay": half}

    same(memory, memory_of("dfw"), halves)


def test_lq_with_q_two_is_l2_retention():
    """Both links of q = 2 are the identity."""
    same(DEEP, choose(DEEP, retention=Lq(q=2.0, decay=log_decay())))
    chunk_reads = choose(DEEP, read="chunk")
    same(chunk_reads, choose(chunk_reads, retention=Lq(q=2.0, form="dual", decay=log_decay())))


@pytest.mark.parametrize("read_at", ["chunk", "commit"])
def test_kl_divergence_is_the_kl_link_without_decay(read_at):
    """W_{t-1} exp(-zeta - eta grad) is c softmax(A - eta grad). The states differ: W against A."""
    memory = Memory(architecture=MLP(), retention=KL(), chunk_size=CHUNK, read=read_at)
    c, results = case(memory, tokens=WHOLE), []
    for m in (memory, choose(memory, retention=KLDivergence())):
        weights = [*normal(c.inputs["v"], 1), *zeros(m.init_state(c.params, batch=B))]
        got = pull(m, "chunked", c.params, None, c.inputs, None, weights)
        results.append((got.y, got.params, got.inputs))
    close(*results, rtol=1e-11)  # zeta is found to the last bits by bisection


def test_bregman_of_the_identity_is_l2():
    """F' = id."""
    memory = choose(DEEP, read="chunk")
    link = Bregman(mirror=_identity, inverse=_identity, decay=log_decay())
    same(memory, choose(memory, retention=link))


def _identity(x):
    return x


@pytest.mark.parametrize("form", ["link", "proximal"])
@pytest.mark.parametrize("kind", ["soft", "hard", "smooth"])
def test_elastic_net_with_threshold_zero_is_l2(form, kind):
    """S(z) = z at gamma = 0."""
    memory = choose(DEEP, read="chunk")
    other = ElasticNet(threshold=0.0, form=form, kind=kind, decay=log_decay())
    same(memory, choose(memory, retention=other))


# Attentional bias


def test_deltanet_with_dot_product_and_unit_step_is_linear_attention():
    """Without the prediction the delta rule is Hebb's."""
    other = choose(DELTANET, bias=DotProduct())
    same(memory_of("linear_attention"), other, constant(step=1.0))


@pytest.mark.parametrize("kind", ["coordinate", "norm", "switch"])
def test_huber_with_a_large_threshold_is_l2(kind):
    """Nothing is clipped; at an infinite threshold neither."""
    same(DEEP, choose(DEEP, bias=Huber(kind=kind, threshold=float("inf"))))
    same(DEEP, choose(DEEP, bias=Huber(kind=kind)), constant(threshold=1e9))


def test_small_thresholds_are_l1():
    """At the same threshold the coordinate and the switch write delta sign(r), like l1 with a step
    delta times smaller. They differ for residuals within delta of zero; equality shows that there
    are none."""
    delta = 1e-6
    memory = choose(DEEP, bias=L1(eps=1e-30))
    c = case(memory)
    small = {**c.inputs, "step": c.inputs["step"] * delta}
    expected, _ = read(memory, c.params, small)
    for kind in ("coordinate", "switch"):
        other = choose(DEEP, bias=Huber(kind=kind, threshold=delta, eps=1e-30))
        y, _ = read(other, c.params, c.inputs)
        close(y, expected, rtol=EXACT)


def test_lp_with_p_two_is_l2():
    """|r|_2^2 / 2."""
    same(DEEP, choose(DEEP, bias=Lp(p=2.0)))


def test_robust_with_radius_zero_is_l2():
    """A ball of one point."""
    same(DEEP, choose(DEEP, bias=Robust()), constant(radius=0.0))


# Learning algorithm


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_zero_is_gradient_descent(nesterov):
    """S_t = -eta_t g_t, and mu_t S_t - eta_t g_t is the same then."""
    momentum = Momentum(normalized=True, nesterov=nesterov)
    same(DEEP, choose(DEEP, algorithm=momentum), constant(momentum=0.0))
    exact = choose(DELTANET, algorithm=Momentum(nesterov=nesterov))
    same(DELTANET, exact, constant(momentum=0.0))


@pytest.mark.parametrize("per", ["key", "value"])
def test_equal_steps_per_channel_are_one_step(per):
    """diag(eta, .., eta) = eta."""
    algorithm = GradientDescent(step=Gate(per=per), normalized=True)
    same(DEEP, choose(DEEP, algorithm=algorithm), by_channel("step"))


def test_equal_steps_per_layer_are_one_step():
    """LaCT's three learning rates, all the same."""
    memory = memory_of("lact")
    layers = memory.algorithm.layer_steps
    one = choose(memory, algorithm=dataclasses.replace(memory.algorithm, layer_steps=()))

    def share(x):
        return {**x, **{f"step_{name}": x["step"] for name in layers}}

    same(one, memory, share)


def test_implicit_step_is_a_smaller_explicit_one():
    """argmin |S - S'|^2 + eta |k S - v|^2 steps by eta / (1 + eta |k|^2)."""

    def shrink(x):
        square = jnp.sum(x["k"] ** 2, axis=-1)
        return {**x, "step": x["step"] / (1 + x["step"] * square)}

    same(choose(DELTANET, algorithm=Implicit()), DELTANET, shrink)


def test_longhorn_with_keys_of_one_channel_is_the_implicit_delta_rule():
    """With k = (k_1, 0, ..) the diagonal of k^T k is all of it."""

    def one_channel(x):
        return {**x, "k": x["k"].at[..., 1:].set(0.0)}

    memory = Memory(algorithm=Implicit(step=Gate()), chunk_size=CHUNK)
    longhorn = choose(memory, architecture=Entries(), algorithm=Implicit(step=Gate(per="value")))
    same(memory, longhorn, by_channel("step"), first=one_channel)


def test_delta_product_of_one_step_is_deltanet():
    """n = 1, and n = 2 with a second step of zero."""
    same(DELTANET, choose(DELTANET, algorithm=SeveralSteps(count=1)))

    def idle(x):
        return {**x, "key_2": x["q"], "value_2": x["q"], "step_2": 0 * x["step"]}

    same(DELTANET, choose(DELTANET, algorithm=SeveralSteps(count=2)), idle)


def test_delta_product_of_two_steps_is_deltanet_over_twice_the_tokens():
    """Its second steps are tokens of their own; every second token reads."""
    memory = choose(DELTANET, algorithm=SeveralSteps(count=2))
    c = case(memory)

    def interleave(a, b):
        a, b = c.inputs[a], c.inputs[b]
        return jnp.stack([a, b], axis=2).reshape(B, 2 * T, *a.shape[2:])

    second = {"q": "q", "k": "key_2", "v": "value_2", "step": "step_2"}
    twice = {name: interleave(name, other) for name, other in second.items()}
    y, state = read(memory, c.params, c.inputs)
    z, other = read(DELTANET, c.params, twice)
    close((y, state.weights), (z[:, 1::2], other.weights), rtol=EXACT)


def test_decoupled_without_gates_is_the_delta_rule():
    """e = w = 1, p = k."""
    same(DELTANET, choose(DELTANET, algorithm=Decoupled(step=Gate())))


def test_comba_that_feeds_its_key_back_is_gated_deltanet():
    """p = k."""
    same(memory_of("gated_deltanet"), memory_of("comba"), lambda x: {**x, "address": x["k"]})


def test_gated_deltanet_2_with_equal_gates_is_kda():
    """k^T (w v - (e k) S) = eta k^T (v - k S) for e = w = eta."""

    def gates(x):
        x = dict(x)
        step = spread(x.pop("step"))
        return {**x, "erase": step, "write": step}

    same(memory_of("kda"), memory_of("gdn2"), gates)


def test_rwkv_7_without_removal_is_gla():
    """a = 0."""
    same(
        memory_of("gla"),
        memory_of("rwkv7"),
        lambda x: {**x, "removal": 0 * x["k"], "replacement": x["k"]},
    )


def test_rwkv_7_can_be_the_decayed_delta_rule():
    """a = -k, b = eta k and the key eta k: diag(rho) S - eta k^T (k S) + eta k^T v."""
    memory = choose(DELTANET, retention=L2Decay(log_decay("key")))

    def split(x):
        x = dict(x)
        written = x.pop("step")[..., None] * x["k"]
        return {**x, "removal": -x["k"], "replacement": written, "k": written}

    same(memory, choose(memory, algorithm=Removal()), split)


def test_lift_of_one_is_plain():
    """start + 1 (A - start) = A."""
    memory = choose(DEEP, retention=NoRetention())
    lifted = dataclasses.replace(memory.algorithm, lift=Gate())
    same(memory, choose(memory, algorithm=lifted), constant(lift=1.0))


def test_commit_at_every_token_is_reading_after_the_write():
    """With chunks of one token the last chunk that was made is the token's own."""
    memory = choose(DEEP, chunk_size=1)
    same(memory, choose(memory, read="commit"))


def test_chunk_descent_without_decay_is_gradient_descent_that_reads_the_start():
    """One step with the sum of a chunk's gradients is the sum of its steps."""
    memory = choose(DEEP, retention=NoRetention(), read="chunk")
    same(memory, choose(memory, algorithm=ChunkDescent(normalized=True)))
    momentum = ChunkDescent(normalized=True, momentum=Gate())
    same(memory, choose(memory, algorithm=momentum), constant(momentum=0.0))


def test_chunk_descent_at_every_token_is_momentum():
    """S_t = mu S_{t-1} - eta g, A_t = decayed A_{t-1} + S_t, with chunks of one token."""
    memory = choose(DEEP, algorithm=Momentum(normalized=True), **ONE_TOKEN)
    same(memory, choose(memory, algorithm=ChunkDescent(normalized=True, momentum=Gate())))


def test_sgd_of_optax_at_every_token_is_gradient_descent():
    """A learning rate of 1 on eta g, with chunks of one token."""
    memory = choose(DEEP, **ONE_TOKEN)
    same(memory, choose(memory, algorithm=Optax(transformation=optax.sgd(1.0), normalized=True)))


def test_sgd_of_optax_with_momentum_is_chunk_descent_with_a_constant_one():
    """trace = 0.9 trace + g."""
    other = Optax(transformation=optax.sgd(1.0, momentum=0.9), normalized=True)
    _same_at_momentum(choose(DEEP, read="chunk"), ChunkDescent, other)


def test_nesterov_momentum_is_that_of_optax():
    """g + 0.9 trace, with chunks of one token."""
    other = Optax(transformation=optax.sgd(1.0, momentum=0.9, nesterov=True), normalized=True)
    _same_at_momentum(choose(DEEP, **ONE_TOKEN), Momentum, other, nesterov=True)


def _same_at_momentum(memory, kind, other, **options):
    """A momentum of constant 0.9 against one of optax."""
    mine = kind(normalized=True, momentum=Gate(), **options)
    same(choose(memory, algorithm=other), choose(memory, algorithm=mine), constant(momentum=0.9))


def test_muon_leaves_a_vector_memory_alone():
    """A row has one singular value."""
    memory = Memory(
        architecture=Vector(),
        algorithm=ChunkDescent(momentum=Gate()),
        chunk_size=CHUNK,
        read="chunk",
    )
    same(memory, choose(memory, algorithm=Muon(momentum=Gate())))


# Architecture


def test_one_layer_mlp_without_norm_is_the_matrix_memory():
    """From the same start, which a matrix memory takes in its state."""
    memory = Memory(
        architecture=MLP(depth=1, norm=False, residual=False),
        retention=L2Decay(anchor="zero"),
        chunk_size=CHUNK,
    )
    matrix = choose(memory, architecture=Matrix())
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


@pytest.mark.parametrize("architecture", [Vector(), Entries()])
def test_diagonal_memories_are_matrices_of_one_channel(architecture):
    """w_i learns from (k_i, v_i), w_ij from (k_i, v_j), each by itself."""
    memory = Memory(architecture=architecture, retention=L2Decay(), chunk_size=CHUNK)
    c = case(memory)
    y, state = read(memory, c.params, c.inputs)

    def pairs(x, axis):
        """Channels, or all pairs of a key and a value channel, as heads of one channel."""
        if isinstance(architecture, Entries):
            x = jnp.broadcast_to(jnp.expand_dims(x, axis), (*x.shape, K))
        return x.reshape(B, T, -1, 1)

    inputs = {n: pairs(c.inputs[n], axis) for n, axis in (("q", -1), ("k", -1), ("v", -2))}
    heads = inputs["q"].shape[2]
    for name in ("step", "log_decay"):
        inputs[name] = jnp.repeat(c.inputs[name], heads // H, axis=-1)
    matrix = choose(memory, architecture=Matrix())
    params = matrix.init(jax.random.key(0), heads=heads, key_dim=1, value_dim=1)
    z, other = read(matrix, params, inputs)
    shape = state.weights["memory"].shape
    close(state.weights["memory"], other.weights["memory"].reshape(shape), rtol=EXACT)
    z = z.reshape(B, T, H, -1, K).sum(-2)  # entries: y_j sums over i
    close(y, z, rtol=EXACT)


def test_norm_of_a_learned_scale_starts_as_a_plain_norm():
    """LN(..) 1 + 0."""
    c = case(DEEP)
    expected, state = read(DEEP, c.params, c.inputs)
    scaled = choose(DEEP, architecture=MLP(scale="learned"))
    start = case(scaled).params
    start = dataclasses.replace(start, weights={**start.weights, **c.params.weights})
    y, other = read(scaled, start, c.inputs)
    close((y, state.weights), (expected, other.weights), rtol=EXACT)


def test_mesanet_with_a_huge_ridge_is_linear_attention():
    """(H + lambda)^-1 = 1 / lambda up to |H| / lambda, 1e-7 here."""
    ridge = 1e8
    memory = Memory(bias=DotProduct(), retention=L2Decay(), chunk_size=CHUNK)
    c = case(memory)
    expected, _ = read(memory, c.params, c.inputs)
    inputs = {**c.inputs, "ridge": jnp.full((B, T, H, K), ridge)}
    y, _ = read(choose(memory, architecture=NormalEquations()), c.params, inputs)
    close(ridge * y, expected, rtol=1e-6)


def test_window_longer_than_the_sequence_is_attention():
    """No pair ever leaves."""
    same(memory_of("transformer"), SlidingWindowAttention(window=T, chunk_size=CHUNK))
