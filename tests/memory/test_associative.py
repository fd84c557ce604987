"""The associative form, on one device and over several, is the recurrent form.

Tolerance: that of the laws, 1e-11. Two orders of the same float64 sums differ by a few 1e-16 of
their size (seen: 2e-15), and the sums of a delta rule with keys of unit norm grow by a few tens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import miras_jax as mj
from miras_jax.memory import (
    L2,
    MLP,
    DotProduct,
    Entries,
    Gate,
    GradientDescent,
    L2Decay,
    Memory,
    Momentum,
    Vector,
    log_decay,
)
from miras_jax.memory.associative import why_not_associative
from miras_jax.memory.sharded import memorize_on_mesh, memorize_sharded
from tests import laws
from tests.cases import CHUNK, NAMES, B, H, K, apply, case, close, cotangents, memory_of, read
from tests.laws import WHOLE, agree, floats, normal, pull
from tests.nights import nightly_but

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = {"architecture": MLP(depth=1, norm=False, residual=False), "chunk_size": CHUNK}
MEMORIES = {
    name: memory for name in NAMES if "associative" in (memory := memory_of(name)).forms
} | {
    "vector": Memory(
        architecture=Vector(), bias=DotProduct(), retention=L2Decay(), chunk_size=CHUNK
    ),
    "vector_channels": Memory(
        architecture=Vector(),
        bias=DotProduct(),
        retention=L2Decay(log_decay(per="key")),
        algorithm=GradientDescent(step=Gate(per="value")),
        chunk_size=CHUNK,
    ),
    # A learned start, which the memory decays to or begins anew from.
    "start": Memory(**LINEAR, bias=L2(), retention=L2Decay(log_decay(per="key"))),
    "start_forgotten": Memory(
        **LINEAR,
        bias=L2(),
        retention=L2Decay(anchor="zero", decay_first=True),
        algorithm=GradientDescent(normalized=True),
    ),
    "start_hebbian": Memory(**LINEAR, bias=DotProduct(), retention=L2Decay(log_decay(per="value"))),
}
TYPICAL = ("gla", "gated_deltanet", "rwkv7")
DOCUMENTS = np.array([[0] * 5 + [1] + [2] * 14, [3] * 10 + [4] + [9] * 9])
"""Segment ids: documents of one token, that begin with a chunk and with the part of a device."""


def carried(c, seed: int = 3):
    """A state as if something had been read."""
    state = c.state(dtype=jnp.float64)
    leaves = normal(state, seed)
    state = laws.with_floats(state, [x / 4 for x in leaves])
    return dataclasses.replace(state, segment=jnp.asarray(DOCUMENTS[:, 0], jnp.int32))


def pulled(c, form: str, state, ids):
    weights = [*normal(c.inputs["v"], seed=1), *normal(c.state(), seed=2)]
    out = pull(c.memory, form, c.params, state, c.inputs, ids, weights)
    return out._replace(state=dataclasses.replace(out.state, segment=jnp.zeros(B)))


@pytest.mark.parametrize("name", MEMORIES)
def test_rows_of_documents_after_a_state(name):
    """Values, final state, and gradients of everything; a last chunk that is not full."""
    c = case(MEMORIES[name], tokens=18)
    args = carried(c), jnp.asarray(DOCUMENTS[:, : c.tokens], jnp.int32)
    agree(*(pulled(c, form, *args) for form in ("associative", "recurrent")))


@pytest.mark.parametrize("name", nightly_but(MEMORIES, TYPICAL))
def test_whole_chunks_of_one_document(name):
    c = case(MEMORIES[name], tokens=WHOLE)
    agree(*(pulled(c, form, None, None) for form in ("associative", "recurrent")))


@pytest.mark.parametrize("name", TYPICAL)
def test_pieces_equal_the_row(name):
    """Cut inside a chunk and a document, down to single tokens."""
    c = case(MEMORIES[name], tokens=18)
    ids = jnp.asarray(DOCUMENTS[:, : c.tokens], jnp.int32)
    state, ys = None, []
    for begin, end in ((0, 7), (7, 8), (8, 18)):
        options = {"state": state, "segment_ids": ids[:, begin:end], "form": "associative"}
        y, state = read(c.memory, c.params, c.slice(begin, end), **options)
        ys.append(y)
    expected = read(c.memory, c.params, c.inputs, segment_ids=ids, form="associative")
    agree((jnp.concatenate(ys, axis=1), state), expected)


@pytest.mark.parametrize("name", TYPICAL)
def test_laws(name):
    """The past sees no future, rows are independent, extreme gates give finite gradients."""
    c = case(MEMORIES[name])
    laws.causality(c, "associative")
    laws.rows_are_independent(c, "associative")
    laws.finite_at_extremes(c, "associative")


def test_widths_of_key_and_value_may_differ():
    for name in ("dfw", "gdn2", "delta_product"):
        c = case(MEMORIES[name], value_dim=6)
        results = [read(c.memory, c.params, c.inputs, form=f) for f in ("associative", "recurrent")]
        agree(*results)


def mesh_of(**sizes):
    count = int(np.prod(list(sizes.values())))
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=jax.devices()[:count],
    )


def spread(memory, params, inputs, **options):
    """`memorize_on_mesh` with the gates taken from the same dict as q, k and v."""
    gates = {name: x for name, x in inputs.items() if name not in "qkv"}
    q, k, v = (inputs[name] for name in "qkv")
    return memorize_on_mesh(memory, params, q, k, v, gates, **options)


def loss_and_gradients(run, c, state, ids):
    """The loss, what was read, and the gradients of parameters, state and inputs."""

    def loss(params, begun, inputs):
        given = state and laws.with_floats(state, begun)
        out = run(c.memory, params, inputs, state=given, segment_ids=ids)
        weights = floats(cotangents(out))
        return sum(jnp.sum(x * w) for x, w in zip(floats(out), weights, strict=True)), out

    differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    return differentiate(c.params, floats(state), c.inputs)


def unsharded(memory, params, inputs, **options):
    return apply(memory, params, inputs, form="recurrent", **options)


def check_mesh(name, mesh, packed):
    c = case(MEMORIES[name], tokens=20)
    state, ids = None, None
    if packed:
        state, ids = carried(c), jnp.asarray(DOCUMENTS, jnp.int32)
    expected = loss_and_gradients(unsharded, c, state, ids)
    with jax.set_mesh(mesh):
        got = loss_and_gradients(spread, c, state, ids)
    agree(jax.device_get(got), jax.device_get(expected))


@pytest.mark.parametrize("name", nightly_but(MEMORIES, (*TYPICAL, "start", "mesanet")))
def test_four_devices_equal_one(name):
    """Documents and a state cross the devices; each has a chunk that is not full."""
    check_mesh(name, mesh_of(sequence=4), packed=True)


@pytest.mark.parametrize("name", TYPICAL)
def test_two_devices_equal_one(name):
    check_mesh(name, mesh_of(sequence=2), packed=False)


@pytest.mark.parametrize("name", ["gated_deltanet", "start"])
def test_rows_and_heads_lie_on_other_axes(name):
    check_mesh(name, mesh_of(data=1, fsdp=2, tensor=2, sequence=2), packed=True)


def test_inside_shard_map():
    """The state is the same on every device; a part may be shorter than a chunk."""
    c = case(MEMORIES["gated_deltanet"], tokens=4)
    q, k, v = (c.inputs[n] for n in "qkv")
    gates = {n: x for n, x in c.inputs.items() if n not in "qkv"}

    def run(q, k, v, gates):
        y, state = memorize_sharded(c.memory, c.params, q, k, v, gates, axis="time")
        return y, jax.tree.map(lambda x: x[None], state)

    spec = P(None, "time")
    with jax.set_mesh(mesh_of(time=4)):
        mapped = jax.shard_map(run, in_specs=spec, out_specs=(spec, P("time")), check_vma=False)
        y, states = jax.jit(mapped)(q, k, v, gates)
    expected_y, expected = read(c.memory, c.params, c.inputs, form="recurrent")
    agree(np.asarray(y), np.asarray(expected_y))
    for device in range(4):
        agree(jax.tree.map(lambda x, d=device: np.asarray(x)[d], states), jax.device_get(expected))
    assert all((x == x[:1]).all() for x in map(np.asarray, jax.tree.leaves(states)))


@pytest.mark.parametrize("run", [spread, apply])
def test_bfloat16_and_precision(run):
    """A float32 state, y in the dtype of v, and no product of default precision."""
    c = case(MEMORIES["gated_deltanet"], tokens=8, dtype=jnp.float32)
    options = {"form": "associative"} if run is apply else {}
    low = {name: x.astype(jnp.bfloat16) for name, x in c.inputs.items()}

    def loss(inputs):
        return sum(map(jnp.sum, floats(run(c.memory, c.params, inputs, **options))))

    with jax.set_mesh(mesh_of(sequence=2)):
        y, state = jax.jit(lambda x: run(c.memory, c.params, x, **options))(low)
        dots = list(laws._dots(jax.make_jaxpr(jax.grad(loss))(c.inputs).jaxpr))
    assert y.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in floats(state))
    same = {name: x.astype(jnp.float32) for name, x in low.items()}
    # Only y is rounded to bfloat16, by 2^-8.
    expected, _ = read(c.memory, c.params, same, form="recurrent")
    close(np.asarray(y, np.float32), np.asarray(expected), rtol=2.0**-8)
    assert dots
    assert all(equation.params["precision"] is not None for equation in dots)


def test_forms_and_reasons():
    """A memory has the form unless it says why not."""
    reasons = {
        "yaad": "not linear",
        "titans": "not linear",
        "lact": "not linear",
        "longhorn": "no chunks",
    }
    for name, reason in reasons.items():
        assert reason in why_not_associative(memory_of(name))
    chunk_reads = Memory(read="chunk", gradient="exact")
    assert "holds the chunk's start" in why_not_associative(chunk_reads)
    momentum = Memory(bias=DotProduct(), algorithm=Momentum())
    assert "momentum" in why_not_associative(momentum)
    for memory in (*map(memory_of, reasons), momentum, chunk_reads, Memory(architecture=Entries())):
        assert "associative" not in memory.forms
    for memory in MEMORIES.values():
        assert not why_not_associative(memory)
        assert "associative" in memory.forms


def test_refusals():
    c = case(memory_of("yaad"))
    with pytest.raises(NotImplementedError, match="it has recurrent, chunked"):
        apply(c.memory, c.params, c.inputs, form="associative")
    with pytest.raises(NotImplementedError, match=r"because .* is not linear"):
        spread(c.memory, c.params, c.inputs)
    transformer = mj.zoo.get("transformer")
    params = transformer.init(jax.random.key(0), heads=H, key_dim=K, value_dim=K)
    with pytest.raises(NotImplementedError, match="Attention has not"):
        spread(transformer, params, c.inputs)
    c = case(MEMORIES["gated_deltanet"])
    with pytest.raises(ValueError, match=r"enter jax\.set_mesh"):
        spread(c.memory, c.params, c.inputs)
    with jax.set_mesh(mesh_of(sequence=2)):
        with pytest.raises(ValueError, match="cuts the tokens in 2, which does not divide 13"):
            spread(c.memory, c.params, c.inputs)
        with pytest.raises(ValueError, match="needs the gates"):
            spread(c.memory, c.params, {n: c.inputs[n] for n in "qkv"})
