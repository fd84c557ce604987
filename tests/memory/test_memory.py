"""Memories that cannot be are refused, in words; states are what their owner says."""

import jax
import jax.numpy as jnp
import optax
import pytest

import miras_jax as mj
from miras_jax.memory import (
    KL,
    L2,
    MLP,
    Bregman,
    ChunkDescent,
    Decoupled,
    DotProduct,
    ElasticNet,
    Entries,
    FDivergence,
    Gate,
    GradientDescent,
    Huber,
    Implicit,
    L2Decay,
    Lp,
    Lq,
    Memory,
    Momentum,
    Muon,
    NormalEquations,
    Optax,
    Removal,
    Retention,
    Robust,
    SeveralSteps,
    Sphere,
    SwiGLU,
    Vector,
    log_decay,
    memorize,
    recall,
)
from tests.cases import B, H, T, case, close, memory_of, read

HALF = Gate()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Memory(chunk_size=0), "chunk_size must be at least 1"),
        (lambda: Memory(read="never"), "read must be"),
        (lambda: Memory(gradient="sometimes"), "gradient must be"),
        (lambda: Memory(architecture=MLP(), gradient="exact"), "needs a linear architecture"),
        (lambda: Memory(bias=Lp(), gradient="exact"), "dot-product or l2 bias"),
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
        (lambda: Retention(value_decay=log_decay()), "per value channel, got per='head'"),
        (lambda: FDivergence(inverse=jnp.exp, decay=log_decay()), "cannot decay"),
        (lambda: FDivergence(inverse=jnp.negative), r"non-decreasing and 1 at 0"),
        (lambda: ElasticNet(threshold=-1.0), "threshold >= 0"),
        (lambda: ElasticNet(kind="medium"), "kind soft, hard or smooth"),
        (lambda: Bregman(mirror=jnp.exp, inverse=jnp.exp), "undo each other"),
        (lambda: Sphere(form="ball"), "'project' or 'link'"),
        (lambda: Robust(radius=-1.0), "at least 0"),
        (lambda: Robust(radius=Gate(per="key")), "per head"),
        (lambda: SwiGLU(expansion=0), "expansion >= 1"),
        (lambda: SwiGLU(residual=True).layers(4, 8), "key_dim=4 must equal value_dim=8"),
        (lambda: Vector().layers(4, 8), "channel by channel"),
        (lambda: MLP(scale="some"), "scale none, learned or memory"),
        (lambda: MLP(norm=False, scale="memory"), "scales the norm"),
        (lambda: NormalEquations(iterations=0), "iterations >= 1"),
        (lambda: Gate(source="sky"), "token or learned"),
        (lambda: GradientDescent(lift=Gate(per="key")), "lift is per head"),
        (lambda: GradientDescent(step=None, layer_steps=("memory",)), "need a step gate"),
        (lambda: SeveralSteps(count=0), "count >= 1"),
        (lambda: Decoupled(erase=Gate()), "erase is per key channel"),
        (lambda: ChunkDescent(momentum=Gate(per="key")), "per head"),
        (lambda: Muon(lift=HALF), "within a chunk"),
        (lambda: Optax(transformation=optax.sgd(1.0), momentum=HALF), "has its own"),
        (lambda: mj.zoo.get("gpt"), "the zoo has linear_attention"),
        (lambda: mj.zoo.get("yaad", chunks=3), "yaad has no chunks; the fields"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()


DEEP = {"architecture": MLP(), "read": "chunk"}


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"architecture": L2()}, "architecture must be one of"),
        ({"retention": L2()}, "retention must be one of"),
        ({"algorithm": None}, "algorithm must be one of"),
        ({"architecture": Vector(), "retention": KL(), "read": "chunk"}, "couples the inputs"),
        ({"architecture": MLP(bias=True), "retention": KL(), "read": "chunk"}, "couples the inp"),
        ({"retention": Sphere()}, "starts at zero"),
        ({"architecture": MLP(bias=True), "retention": Lq()}, "starts at zero"),
        ({"algorithm": GradientDescent(layer_steps=("up",))}, r"layer_steps name \['up'\]"),
        ({"architecture": NormalEquations()}, "accumulates k\\^T k"),
        (
            {
                "architecture": NormalEquations(),
                "bias": DotProduct(),
                "retention": L2Decay(log_decay("key")),
            },
            "must stay symmetric",
        ),
        ({"retention": ElasticNet()}, "no multiple of the accumulator"),
        (
            {
                "bias": DotProduct(),
                "retention": Retention(decay=log_decay("key"), value_decay=log_decay("value")),
                "algorithm": Momentum(),
            },
            "one kind of channels",
        ),
        ({"algorithm": ChunkDescent()}, "moves the memory at the chunk's end only"),
        ({"algorithm": Implicit(), "bias": DotProduct()}, "the bias is the dot product"),
        ({"algorithm": Implicit(), **DEEP}, "the architecture is not linear"),
        ({"algorithm": Decoupled(), "gradient": "chunk"}, "exact"),
        ({"algorithm": Removal(), "read": "commit"}, "read='commit'"),
        ({"algorithm": Implicit(normalized=True)}, "sets its own step"),
        ({"algorithm": GradientDescent(lift=HALF), "retention": L2Decay()}, "A lift scales"),
        ({"algorithm": Momentum(lift=HALF)}, "A lift scales"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(choices, words):
    """In one sentence that says why; alone each of them is fine."""
    with pytest.raises(ValueError, match=words) as refusal:
        Memory(**choices)
    assert str(refusal.value).endswith(".")


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
    with pytest.raises(ValueError, match="no momentum to begin from"):
        memory.init_state(params, batch=4, momentum={"memory": start})


@pytest.mark.parametrize("algorithm", [Momentum(), ChunkDescent(momentum=HALF)])
def test_state_takes_momentum(algorithm):
    """The first write adds mu times it: here mu is 1 and the step 0."""
    memory = Memory(algorithm=algorithm, chunk_size=1, read="commit", gradient="chunk")
    params = memory.init(jax.random.key(0), heads=2, key_dim=3, value_dim=5)
    momentum = {"memory": jax.random.normal(jax.random.key(1), (4, 2, 3, 5))}
    state = memory.init_state(params, batch=4, momentum=momentum)
    k, v, one = jnp.ones((4, 1, 2, 3)), jnp.ones((4, 1, 2, 5)), jnp.ones((4, 1, 2))
    _, state = memorize(memory, params, k, k, v, {"step": 0 * one, "momentum": one}, state=state)
    close(state.weights, momentum, rtol=1e-6)


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


@pytest.mark.parametrize(
    "memory",
    [
        Memory(retention=L2Decay()),
        Memory(architecture=MLP(), retention=Lq(decay=log_decay()), chunk_size=4),
        Memory(architecture=MLP(), retention=KL(), chunk_size=4, read="commit"),
        Memory(architecture=Entries()),
    ],
    ids=["exact", "scalar link", "link", "entries"],
)
def test_recall_reads_what_a_token_that_writes_nothing_reads(memory):
    """Also in the middle of a chunk."""
    c = case(memory, tokens=7, dtype=jnp.float32)
    _, state = read(memory, c.params, c.slice(0, 6))
    idle = {n: 0 * x if n in ("step", "log_decay") else x for n, x in c.slice(6, 7).items()}
    y, _ = read(memory, c.params, idle, state=state)
    # Two orders of the same float32 sums.
    close(recall(memory, c.params, state, idle["q"]), y, rtol=1e-5)


def test_recall_needs_no_gates():
    memory = Memory(architecture=NormalEquations(), bias=DotProduct())
    c = case(memory, dtype=jnp.float32)
    with pytest.raises(NotImplementedError, match=r"reads with the gates \['ridge'\]"):
        recall(memory, c.params, c.state(), c.inputs["q"])


def test_diagnostics_say_what_the_inner_loop_did():
    """A full step on unit-norm keys leaves no loss; the numbers fit together."""
    memory = Memory(retention=L2Decay(), chunk_size=4)
    c = case(memory, dtype=jnp.float32)
    inputs = {
        **c.inputs,
        "step": jnp.ones_like(c.inputs["step"]),
        "log_decay": 0 * c.inputs["step"],
    }
    gates = {n: inputs[n] for n in ("step", "log_decay")}
    q, k, v = (inputs[n] for n in "qkv")
    y, _, what = memorize(memory, c.params, q, k, v, gates, diagnostics=True)
    close(y, read(memory, c.params, inputs)[0], rtol=1e-5)
    close(what.loss_before[:, 0], (v[:, 0] ** 2).sum(-1) / 2, rtol=1e-6)
    # |r|^2 / 2 with r of rounding size.
    assert what.loss_after.max() <= 1e-10
    # The write is k^T r: its norm is that of the residual before it.
    close(what.step_norm, jnp.sqrt(2 * what.loss_before), rtol=1e-5)
    close(what.memory_norm[:, 0], what.step_norm[:, 0], rtol=1e-6)
    assert (what.retention == 1.0).all()
    assert (what.step == 1.0).all()
    with pytest.raises(NotImplementedError, match="run the recurrent form"):
        memorize(memory, c.params, q, k, v, gates, diagnostics=True, form="chunked")
    transformer = mj.zoo.get("transformer")
    params = transformer.init(jax.random.key(0), heads=2, key_dim=4, value_dim=4)
    with pytest.raises(NotImplementedError, match="no inner loop"):
        memorize(transformer, params, q, k, v, diagnostics=True)


def test_memories_of_separate_numbers_have_no_chunked_form():
    memory = Memory(architecture=Entries())
    c = case(memory, dtype=jnp.float32)
    assert memory.forms == ("recurrent",)
    assert read(memory, c.params, c.inputs)[0].shape[0] == B
    with pytest.raises(NotImplementedError, match="it has recurrent"):
        read(memory, c.params, c.inputs, form="chunked")


@pytest.mark.usefixtures("x64")
def test_key_and_value_widths_may_differ():
    for name in ("linear_attention", "deltanet", "gated_deltanet"):
        c = case(memory_of(name), value_dim=6)
        results = [read(c.memory, c.params, c.inputs, form=f) for f in ("recurrent", "chunked")]
        assert results[0][0].shape == (B, T, H, 6)
        close(*results, rtol=1e-11)
