"""The contract that every model of the zoo keeps, whatever its four choices.

Tolerances: two orders of the same float64 sums differ by a few 1e-16 of their size; a deep memory
with decay and link amplifies that by its inner gradients, 1e-11 leaves room for four decades.
"""

import dataclasses
import itertools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import miras_jax as mj
from tests.cases import CHUNK, NAMES, B, Case, H, K, T, case, close, memory_of, read, weigh

EXACT = 1e-11

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.parametrize("name", NAMES)]

FORMS = ("recurrent", "chunked")


def value_and_gradients(c: Case, run):
    """Weighs y and the final state of `run(params, inputs)`; the sum, and its gradients."""
    return jax.jit(jax.value_and_grad(lambda p, x: weigh(run(p, x)), argnums=(0, 1)))(
        c.params, c.inputs
    )


def check_same(c: Case, run, reference, gradients: bool):
    """Two ways of reading agree: in all that they return, and in its gradients if asked."""
    close(jax.jit(run)(c.params, c.inputs), jax.jit(reference)(c.params, c.inputs), rtol=EXACT)
    if gradients:
        close(value_and_gradients(c, run), value_and_gradients(c, reference), rtol=EXACT)


@pytest.mark.parametrize("tokens", [T, 3 * CHUNK])
def test_chunked_equals_recurrent(name, tokens):
    c = case(memory_of(name), tokens=tokens)
    check_same(
        c,
        lambda p, x: read(c.memory, p, x, form="chunked"),
        lambda p, x: read(c.memory, p, x, form="recurrent"),
        gradients=tokens == T,
    )


@pytest.mark.parametrize("form", FORMS)
def test_causality(name, form):
    c = case(memory_of(name))
    run = jax.jit(lambda x: read(c.memory, c.params, x, form=form)[0])
    y = run(c.inputs)
    for t in (1, 5, T - 1):
        for input_name in c.inputs:
            changed = dict(c.inputs)
            changed[input_name] = changed[input_name].at[:, t].multiply(0.5)
            z = run(changed)
            assert jnp.array_equal(y[:, :t], z[:, :t]), f"{input_name} at {t} changed the past"
    changed = dict(c.inputs, v=c.inputs["v"].at[:, 1].add(1.0))
    assert not jnp.array_equal(y[:, 2:], run(changed)[:, 2:]), "the memory forgot at once"


def test_rows_are_independent(name):
    c = case(memory_of(name))
    run = jax.jit(lambda x: read(c.memory, c.params, x))
    y, _ = run(c.inputs)
    z, _ = run({n: x.at[1].multiply(0.3) for n, x in c.inputs.items()})
    assert jnp.array_equal(y[0], z[0])
    assert not jnp.array_equal(y[1], z[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cuts", [(6,), (1, 3, 9)])
def test_splits_anywhere(name, form, cuts):
    c = case(memory_of(name))

    def in_pieces(params, inputs):
        state, ys = None, []
        for begin, end in zip((0, *cuts), (*cuts, T), strict=True):
            piece = {n: x[:, begin:end] for n, x in inputs.items()}
            y, state = read(c.memory, params, piece, state=state, form=form)
            ys.append(y)
        return jnp.concatenate(ys, axis=1), state

    check_same(
        c,
        in_pieces,
        lambda p, x: read(c.memory, p, x, form=form),
        gradients=form == "chunked" and len(cuts) > 1,
    )


DOCUMENTS = ([0] * 5 + [1] + [2] * 7, [3] + [4] * 3 + [9] * 9)


@pytest.mark.parametrize("form", FORMS)
def test_packed_equals_apart(name, form):
    """A packed row gives what its documents give apart, each begun at its phase of the grid."""
    c = case(memory_of(name))
    ids = np.array(DOCUMENTS)

    def packed(params, inputs):
        return read(c.memory, params, inputs, segment_ids=jnp.asarray(ids), form=form)[0]

    def apart(params, inputs):
        rows = []
        for row in range(B):
            ys = []
            for document in np.unique(ids[row]):
                where = np.flatnonzero(ids[row] == document)
                begin, end = where[0], where[-1] + 1
                phase = {} if c.memory.exact else {"phase": int(begin) % CHUNK}
                state = c.memory.init_state(params, batch=1, dtype=jnp.float64, **phase)
                piece = {n: x[row : row + 1, begin:end] for n, x in inputs.items()}
                ys.append(read(c.memory, params, piece, state=state, form="recurrent")[0])
            rows.append(jnp.concatenate(ys, axis=1))
        return jnp.concatenate(rows)

    check_same(c, packed, apart, gradients=form == "chunked")


def test_packed_row_splits_anywhere(name):
    """Document boundaries survive a cut through a document and a cut between two."""
    c = case(memory_of(name))
    ids = jnp.asarray(DOCUMENTS)
    y, state = read(c.memory, c.params, c.inputs, segment_ids=ids)
    for cut in (3, 5, 8):
        a, carried = read(c.memory, c.params, c.slice(0, cut), segment_ids=ids[:, :cut])
        b, carried = read(
            c.memory, c.params, c.slice(cut, T), segment_ids=ids[:, cut:], state=carried
        )
        close((jnp.concatenate([a, b], 1), carried), (y, state), rtol=EXACT)


def test_chunk_size_changes_nothing_where_the_memory_is_exact(name):
    memory = memory_of(name)
    if name == "transformer" or not memory.exact:
        pytest.skip("gradients at the chunk's start make the chunk size part of the model")
    c = case(memory)
    expected = value_and_gradients(c, lambda p, x: read(memory, p, x, form="recurrent"))
    for size in (1, 3, 64):
        other = dataclasses.replace(memory, chunk_size=size)
        got = value_and_gradients(c, lambda p, x, m=other: read(m, p, x, form="chunked"))
        close(got, expected, rtol=EXACT)


def test_state_has_constant_size(name):
    c = case(memory_of(name))
    sizes = []
    for tokens in (1, 5, T):
        _, state = read(c.memory, c.params, c.slice(0, tokens))
        sizes.append(sum(x.size for x in jax.tree.leaves(state)))
    if name == "transformer":
        assert sizes[0] < sizes[1] < sizes[2]
    else:
        assert len(set(sizes)) == 1


@pytest.mark.parametrize("form", FORMS)
def test_finite_differences(name, form):
    """Every input, gate, parameter and state leaf: d/de of a random direction at 0.

    Central differences at e = 1e-5 err by e^2 times a third derivative, and by 1e-16 / e: 1e-7
    of the gradient's size allows for both.
    """
    c = case(memory_of(name))
    _, state = read(c.memory, c.params, c.slice(0, 3))
    arguments = {"params": c.params, "state": _floats(state), **c.slice(3, 11)}

    def loss(arguments):
        inputs = {n: x for n, x in arguments.items() if n not in ("params", "state")}
        begun = jax.tree.map(
            lambda given, x: x if given is None else given,
            arguments["state"],
            state,
            is_leaf=lambda x: x is None,
        )
        return weigh(read(c.memory, arguments["params"], inputs, state=begun, form=form))

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    _, gradient = value_and_grad(arguments)
    rng = np.random.default_rng(3)
    for argument in arguments:
        if not jax.tree.leaves(arguments[argument]):
            continue
        direction = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape)), arguments[argument]
        )
        moved = [
            {
                **arguments,
                argument: jax.tree.map(lambda x, d, e=e: x + e * d, arguments[argument], direction),
            }
            for e in (1e-5, -1e-5)
        ]
        numeric = (value_and_grad(moved[0])[0] - value_and_grad(moved[1])[0]) / 2e-5
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient[argument], direction)
        size = sum(jnp.sum(jnp.abs(g)) for g in jax.tree.leaves(gradient[argument]))
        assert abs(numeric - sum(jax.tree.leaves(products))) <= 1e-7 * max(size, 1.0), argument


def _floats(tree):
    """The tree with None in place of its integer leaves."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, tree)


EXTREMES = {
    "log_decay": (0.0, -30.0),
    "step": (0.0, 1.0),
    "momentum": (0.0, 0.999),
    "threshold": (0.0, np.inf),
}


@pytest.mark.parametrize("form", FORMS)
def test_finite_at_extremes(name, form):
    """Gates at their ends, a repeated key, a zero key and a zero query, in float32."""
    c = case(memory_of(name), dtype=jnp.float32)
    k = c.inputs["k"].at[:, 3:6].set(c.inputs["k"][:, 2:3]).at[:, 8].set(0.0)
    inputs = dict(c.inputs, k=k, q=c.inputs["q"].at[:, 4].set(0.0))
    run = jax.jit(
        jax.value_and_grad(lambda p, x: weigh(read(c.memory, p, x, form=form)), argnums=(0, 1))
    )
    # Every corner, and every corner in turn with the one across.
    for corner in itertools.product(*(EXTREMES[gate] for gate in c.memory.gates)):
        for alternate in (False, True):
            extreme = dict(inputs)
            for gate, end in zip(c.memory.gates, corner, strict=True):
                x = jnp.full_like(inputs[gate], end)
                other = sum(EXTREMES[gate]) - end if np.isfinite(end) else 0.0
                extreme[gate] = x.at[:, ::2].set(other) if alternate else x
            for leaf in jax.tree.leaves(run(c.params, extreme)):
                assert jnp.isfinite(leaf).all(), (corner, alternate)


def test_state_can_be_donated_and_is_cast_to_the_inputs(name):
    """Every leaf is a buffer of its own; a float32 state continues in float64."""
    c = case(memory_of(name))
    step = jax.jit(lambda x, state: read(c.memory, c.params, x, state=state), donate_argnums=1)
    options = {"capacity": T} if name == "transformer" else {}
    state = c.memory.init_state(c.params, batch=B, **options)
    y, state = step(c.slice(0, CHUNK), state)
    assert y.dtype == jnp.float64
    y, state = step(c.slice(CHUNK, T), state)
    expected, _ = read(c.memory, c.params, c.inputs)
    # The start was float32; the numbers in it are not rounded otherwise.
    close(y, expected[:, CHUNK:], rtol=1e-6)


def test_products_keep_their_precision_under_transformations(name):
    """On accelerators a product of default precision is one of bfloat16 or TF32."""
    c = case(memory_of(name), dtype=jnp.float32)

    def loss(params, inputs):
        return weigh(read(c.memory, params, inputs))

    for transformed in (
        jax.grad(jax.jit(loss), argnums=(0, 1)),
        jax.grad(jax.checkpoint(loss), argnums=(0, 1)),
    ):
        dots = list(_dots(jax.make_jaxpr(transformed)(c.params, c.inputs).jaxpr))
        assert dots
        for equation in dots:
            assert equation.params["precision"] is not None, equation


def _dots(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr),
        ):
            if isinstance(inner, jax.extend.core.ClosedJaxpr):
                yield from _dots(inner.jaxpr)
            elif isinstance(inner, jax.extend.core.Jaxpr):
                yield from _dots(inner)


def test_bfloat16_inputs_keep_a_float32_state(name):
    c = case(memory_of(name), dtype=jnp.float32)
    low = {n: x.astype(jnp.bfloat16) for n, x in c.inputs.items()}
    y, state = read(c.memory, c.params, low)
    assert y.dtype == jnp.bfloat16
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert floats
    assert all(x.dtype == jnp.float32 for x in floats)
    # The same numbers read in float32: only the rounding of y to bfloat16 (2^-8) is left.
    exact, _ = read(c.memory, c.params, {n: x.astype(jnp.float32) for n, x in low.items()})
    close(y.astype(jnp.float32), exact, rtol=2**-8)


def test_refuses_what_does_not_fit(name):
    c = case(memory_of(name))
    q, k, v = (c.inputs[n] for n in "qkv")
    gates = {n: x for n, x in c.inputs.items() if n not in "qkv"}

    def call(memory=c.memory, params=c.params, q=q, k=k, v=v, gates=gates, **options):
        return mj.memorize(memory, params, q, k, v, gates, **options)

    with pytest.raises(ValueError, match=r"q and k \[B, T, H, K\]"):
        call(k=k[:, 1:])
    with pytest.raises(ValueError, match="at least one token"):
        call(q=q[:, :0], k=k[:, :0], v=v[:, :0])
    with pytest.raises(ValueError, match="needs the gates"):
        call(gates={**gates, "unknown": q[..., 0]})
    with pytest.raises(ValueError, match="segment_ids need shape"):
        call(segment_ids=jnp.zeros((B, T + 1), jnp.int32))
    with pytest.raises(ValueError, match="an integer type"):
        call(segment_ids=jnp.zeros((B, T)))
    with pytest.raises(ValueError, match="not one of this memory for a batch of 2"):
        call(state=c.memory.init_state(c.params, batch=B + 1))
    other = memory_of("transformer" if name != "transformer" else "deltanet")
    other_params = other.init(jax.random.key(0), heads=H, key_dim=K, value_dim=K)
    with pytest.raises(ValueError, match="not one of this memory"):
        call(state=other.init_state(other_params, batch=B))
    with pytest.raises(ValueError, match="form must be one of"):
        call(form="fast")
    with pytest.raises(NotImplementedError, match="pallas_tpu"):
        call(form="pallas_tpu")
    with pytest.raises(ValueError, match="parameters are of a memory"):
        call(params=c.memory.init(jax.random.key(0), heads=H + 1, key_dim=K, value_dim=K))
    for gate in gates:
        with pytest.raises(ValueError, match=f"Gate '{gate}' needs shape"):
            call(gates={**gates, gate: gates[gate][:, 1:]})
