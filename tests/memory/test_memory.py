"""Memories that cannot be are refused, in words; states are what their owner says."""

import jax
import jax.numpy as jnp
import pytest

import miras_jax as mj
from miras_jax.memory import (
    KL,
    MLP,
    Gate,
    GradientDescent,
    Huber,
    L2Decay,
    Lp,
    Lq,
    Memory,
    Momentum,
    log_decay,
)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Memory(chunk_size=0), "chunk_size must be at least 1"),
        (lambda: Memory(read="never"), "read must be"),
        (lambda: Memory(gradient="sometimes"), "gradient must be"),
        (lambda: Memory(architecture=MLP(), gradient="exact"), "needs a linear architecture"),
        (lambda: Memory(bias=Lp(), gradient="exact"), "dot-product or l2 bias"),
        (lambda: Memory(retention=KL()), "read='chunk'"),
        (lambda: Memory(retention=Lq(form="dual")), "read='chunk'"),
        (lambda: Memory(bias=Lp(), retention=L2Decay(decay_first=True)), "decay_first"),
        (
            lambda: Memory(retention=L2Decay(decay_first=True), algorithm=Momentum()),
            "not defined with momentum",
        ),
        (
            lambda: Memory(algorithm=GradientDescent(step=Gate(per="value")), gradient="exact"),
            "no gate per value channel",
        ),
        (lambda: Memory(retention=Lq()), "learned start"),
        (lambda: Gate(per="row"), "per head or key or value"),
        (lambda: Gate(activation="relu"), "with activation"),
        (lambda: Gate(initial=1.5), r"inside \(0.0, 1.0\)"),
        (lambda: log_decay(initial=0.1), "initial must be inside"),
        (lambda: Huber(threshold=0.0), "above 0"),
        (lambda: KL(decay=log_decay(per="key")), "softmax axis"),
        (lambda: Lq(q=1.0), "q > 1"),
        (lambda: Lq(form="other"), "'norm' or 'dual'"),
        (lambda: Lp(p=0.5), "p >= 1"),
        (lambda: Huber(kind="soft"), "coordinate, norm or switch"),
        (lambda: Huber(threshold=Gate(per="key")), "per head"),
        (lambda: Momentum(momentum=Gate(per="key")), "per head"),
        (lambda: L2Decay(anchor="nowhere"), "anchor must be"),
        (lambda: MLP(depth=0), "depth >= 1"),
        (lambda: MLP().layers(4, 8), "key_dim=4 must equal value_dim=8"),
        (lambda: mj.zoo.get("gpt"), "the zoo has linear_attention"),
        (lambda: mj.zoo.get("yaad", chunks=3), "yaad has no chunks; the fields"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_state_takes_weights_and_refuses_wrong_ones():
    memory = mj.zoo.get("deltanet")
    params = memory.init(jax.random.key(0), heads=2, key_dim=3, value_dim=5)
    assert not jax.tree.leaves(params)
    start = jax.random.normal(jax.random.key(1), (4, 2, 3, 5))
    state = memory.init_state(params, batch=4, weights={"memory": start})
    assert jnp.array_equal(state.weights["memory"], start)
    q = jax.random.normal(jax.random.key(2), (4, 1, 2, 3))
    y, _ = mj.memorize(
        memory,
        params,
        q,
        jnp.zeros_like(q),
        jnp.zeros((4, 1, 2, 5)),
        {"step": jnp.zeros((4, 1, 2))},
        state=state,
    )
    assert jnp.allclose(y[:, 0], jnp.einsum("bhk,bhkv->bhv", q[:, 0], start), atol=1e-6)
    with pytest.raises(ValueError, match="must have shapes"):
        memory.init_state(params, batch=3, weights={"memory": start})
    with pytest.raises(ValueError, match="must have shapes"):
        memory.init_state(params, batch=4, weights={"matrix": start})
    with pytest.raises(ValueError, match="phase must be in"):
        mj.zoo.get("yaad").init_state(params, batch=4, phase=16)


@pytest.mark.parametrize(
    "gate", [Gate(), Gate(initial=0.7, high=2.0), log_decay(), log_decay("key")]
)
def test_gates_start_at_their_initial_values(gate):
    values = gate.activate(jnp.asarray(gate.initial_logits(5), jnp.float32))
    low, high = gate.range
    assert ((values > low) & (values < high)).all()
    ends = gate.initial if isinstance(gate.initial, tuple) else (gate.initial,) * 2
    assert jnp.allclose(values[jnp.array([0, -1])], jnp.asarray(ends), rtol=1e-4)


def test_learned_starts_have_the_documented_scale():
    """Unit variance for the layer that reads unit-norm keys, 1 / sqrt(inputs) after it."""
    params = mj.zoo.get("yaad").init(jax.random.key(0), heads=8, key_dim=32, value_dim=32)
    stds = {name: float(w.std()) for name, w in params.weights.items()}
    assert stds["layer_1"] == pytest.approx(1.0, rel=0.03)
    assert stds["layer_2"] == pytest.approx(128**-0.5, rel=0.03)


def test_a_gate_per_value_channel_takes_the_gradient_at_the_chunk():
    assert Memory().exact
    assert not Memory(algorithm=GradientDescent(step=Gate(per="value"))).exact


def test_attention_over_its_capacity_is_not_a_number():
    memory = mj.zoo.get("transformer")
    params = memory.init(jax.random.key(0), heads=1, key_dim=2, value_dim=2)
    x = jnp.ones((1, 3, 1, 2))
    state = memory.init_state(params, batch=1, capacity=4)
    y, state = mj.memorize(memory, params, x, x, x, state=state)
    assert jnp.isfinite(y).all()
    y, _ = mj.memorize(memory, params, x, x, x, state=state)
    assert jnp.isnan(y).all()


@pytest.mark.parametrize("q", [1.5, 4.0])
def test_dual_link_starts_at_the_layers_scale(q):
    """The deviation of W and the mean of dW/dA are what the normalised step counts with."""
    retention, layer = Lq(q=q, form="dual"), MLP().layers(64, 64)["layer_1"]
    a = retention.initial_std(layer) * jax.random.normal(jax.random.key(0), (64, 256))
    w = retention.link(a, a, layer)
    assert float(w.std()) == pytest.approx(layer.std, rel=0.05)
    bumped = retention.link(a + 1e-3, a, layer)
    assert float(jnp.mean(bumped - w)) / 1e-3 == pytest.approx(retention.gain(layer), rel=0.05)
