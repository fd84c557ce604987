"""The laws that every memory keeps, each a function of a `Case` that asserts one of them.

Compiling is what costs here, so the laws share few compiled functions of few shapes. One token of
the recurrent form, walked over a row forwards and, by the chain rule, backwards, is what everything
else is compared with: whole rows, and windows of the chunked form begun at every place of the walk.

Tolerances: two orders of the same float64 sums differ by a few 1e-16 of their size; a deep memory
with decay and link amplifies that by its inner gradients, 1e-11 leaves room for four decades.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import miras_jax as mj
from miras_jax.memory import Attention
from tests.cases import CHUNK, B, Case, H, K, T, apply, case, close, memory_of, read

EXACT = 1e-11
WHOLE = 3 * CHUNK
"""Tokens of a row that ends with a chunk."""
WINDOW = 6
"""Tokens of a window: more than a chunk."""
DOCUMENTS = np.array(([0] * 5 + [1] + [2] * 7, [3] + [4] * 3 + [9] * 9))
"""Segment ids of a packed row: documents of one token, and that begin in and with a chunk."""


class Pulled(NamedTuple):
    """What a read gives, and the gradients of its weighed sum `loss`."""

    loss: jax.Array
    y: jax.Array
    state: Any
    params: Any
    begun: list
    inputs: dict


def floats(tree) -> list:
    """The floating leaves of a tree."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def with_floats(tree, leaves):
    """The tree with other floating leaves."""
    leaves = iter(leaves)
    return jax.tree.map(
        lambda x: next(leaves) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def normal(tree, seed: int) -> list:
    """Random weights for the floating leaves of a tree."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in floats(tree)]


def zeros(tree) -> list:
    return [jnp.zeros_like(x) for x in floats(tree)]


def agree(a, b):
    """`close` to EXACT. A leaf that is the small difference of large sums keeps their rounding."""
    largest = max((float(jnp.abs(x).max(initial=0.0)) for x in floats(b)), default=0.0)
    close(a, b, rtol=EXACT, atol=1e-14 * largest)


def add(trees):
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), trees)


@functools.partial(jax.jit, static_argnames=("memory", "form"))
def pull(memory, form, params, state, inputs, ids, weights) -> Pulled:
    """Reads, and differentiates the sum of the floating leaves of (y, state) times `weights` by
    the parameters, the floating leaves of the given state, and the inputs."""

    def loss(params, begun, inputs):
        given = with_floats(state, begun)
        out = apply(memory, params, inputs, state=given, segment_ids=ids, form=form)
        return sum(jnp.sum(x * w) for x, w in zip(floats(out), weights, strict=True)), out

    differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (total, (y, after)), gradients = differentiate(params, floats(state), inputs)
    return Pulled(total, y, after, *gradients)


class Walk(NamedTuple):
    """A row read token by token, and differentiated token by token backwards.

    `states[t]` is before token t and `bars[t]` its cotangent; `params[t]` is what token t alone
    adds to the gradient of the parameters. `y_bar` weighs y.
    """

    y: jax.Array
    states: list
    y_bar: jax.Array
    bars: list
    params: list
    inputs: dict


def walk(c: Case, ids=None, begin=0, end=None, phase=0, y_bar=None) -> Walk:
    """Walks over tokens `begin .. end` from a new state. Weighs y and the last state at random, or
    y alone by `y_bar`."""
    end = c.tokens if end is None else end
    ids = np.zeros((B, c.tokens), np.int32) if ids is None else ids
    options = {"phase": phase} if phase else {}
    states, ys = [c.state(dtype=jnp.float64, **options)], []

    def one(state, t, weights):
        ids_t = jnp.asarray(ids[:, t : t + 1], jnp.int32)
        return pull(c.memory, "recurrent", c.params, state, c.slice(t, t + 1), ids_t, weights)

    silent = jnp.zeros((B, 1, *c.inputs["v"].shape[2:]))
    for t in range(begin, end):
        out = one(states[-1], t, [silent, *zeros(states[-1])])
        ys.append(out.y)
        states.append(out.state)
    y = jnp.concatenate(ys, axis=1)
    last = normal(states[-1], seed=2) if y_bar is None else zeros(states[-1])
    y_bar = normal(y, seed=1)[0] if y_bar is None else y_bar
    bars, params, inputs = [last], [], []
    for t in reversed(range(begin, end)):
        at = t - begin
        out = one(states[at], t, [y_bar[:, at : at + 1], *bars[0]])
        bars.insert(0, out.begun)
        params.insert(0, out.params)
        inputs.insert(0, out.inputs)
    inputs = {n: jnp.concatenate([x[n] for x in inputs], axis=1) for n in c.inputs}
    return Walk(y, states, y_bar, bars, params, inputs)


@functools.lru_cache(maxsize=4)
def walked(c: Case) -> Walk:
    """The walk over a row of one document."""
    return walk(c)


@functools.lru_cache(maxsize=4)
def walked_packed(c: Case) -> Walk:
    """The walk over a row of several documents."""
    return walk(c, DOCUMENTS)


def gradient_of_parameters(c: Case, params: list, begun: list):
    """What tokens add, and what states that were made of the parameters add by their cotangent."""

    def begin(params):
        return floats(dataclasses.replace(c, params=params).state(dtype=jnp.float64))

    _, back = jax.vjp(begin, c.params)
    return add([*params, back(begun)[0]])


def row_length(c: Case) -> int:
    """Tokens of a row that is read at once: the walk's states of attention have room for all."""
    return c.tokens if isinstance(c.memory, Attention) else WHOLE


def unnumbered(state) -> list:
    """The leaves of a state but for the last segment id."""
    return jax.tree.leaves(dataclasses.replace(state, segment=jnp.zeros(B, jnp.int32)))


def windows_equal_their_tokens(c: Case, w: Walk, ids):
    """Tokens read at once from any state of a walk give its outputs, state and gradients."""
    for begin in range(c.tokens - WINDOW + 1):
        at = slice(begin, begin + WINDOW)
        args = w.states[at.start], c.slice(at.start, at.stop), jnp.asarray(ids[:, at], jnp.int32)
        weights = [w.y_bar[:, at], *w.bars[at.stop]]
        got = pull(c.memory, "chunked", c.params, *args, weights)
        agree((got.y, got.state), (w.y[:, at], w.states[at.stop]))
        inputs = {n: x[:, at] for n, x in w.inputs.items()}
        expected = add(w.params[at]), w.bars[at.start], inputs
        agree((got.params, got.begun, got.inputs), expected)


def whole(c: Case, form: str, inputs, weights=None) -> Pulled:
    """A row read at once, without a state and segment ids."""
    if weights is None:
        w = walked(c)
        end = inputs["q"].shape[1]
        weights = [w.y_bar[:, :end], *w.bars[end]]
    return pull(c.memory, form, c.params, None, inputs, None, weights)


def whole_row_equals_its_tokens(c: Case, form: str):
    """Values, final state and gradients."""
    w, end = walked(c), row_length(c)
    got = whole(c, form, c.slice(0, end))
    agree((got.y, unnumbered(got.state)), (w.y[:, :end], unnumbered(w.states[end])))
    inputs = {n: x[:, :end] for n, x in w.inputs.items()}
    params = gradient_of_parameters(c, w.params[:end], w.bars[0])
    agree((got.params, got.inputs), (params, inputs))


def splits_anywhere(c: Case):
    """A window begun at every token, in every phase of a chunk, carries the state on."""
    windows_equal_their_tokens(c, walked(c), np.zeros_like(DOCUMENTS))


def packed_row_splits_anywhere(c: Case):
    """Document boundaries survive cuts through a document and between two."""
    windows_equal_their_tokens(c, walked_packed(c), DOCUMENTS)


def packed_equals_apart(c: Case):
    """A packed row gives what its documents give apart, each begun at its phase of the grid."""
    (y_bar,) = normal(c.inputs["v"], seed=3)
    y, params, begun = jnp.zeros_like(y_bar), [], []
    inputs = jax.tree.map(jnp.zeros_like, c.inputs)
    for row in range(B):
        for document in np.unique(DOCUMENTS[row]):
            where = np.flatnonzero(DOCUMENTS[row] == document)
            begin, end = int(where[0]), int(where[-1]) + 1
            phase = 0 if c.memory.exact else begin % c.memory.chunk_size
            at = (slice(row, row + 1), slice(begin, end))
            mine = jnp.zeros_like(y_bar).at[at].set(y_bar[at])[:, begin:end]
            apart = walk(c, None, begin, end, phase, mine)
            y = y.at[at].set(apart.y[row : row + 1])
            params += apart.params
            begun.append(apart.bars[0])
            inputs = {n: x.at[at].set(apart.inputs[n][row : row + 1]) for n, x in inputs.items()}
    expected = y, gradient_of_parameters(c, params, add(begun)), inputs
    packed = walk(c, DOCUMENTS, y_bar=y_bar)
    params = gradient_of_parameters(c, packed.params, packed.bars[0])
    agree((packed.y, params, packed.inputs), expected)
    if "chunked" in c.memory.forms:
        weights = [y_bar, *zeros(packed.states[-1])]
        ids = jnp.asarray(DOCUMENTS, jnp.int32)
        got = pull(c.memory, "chunked", c.params, None, c.inputs, ids, weights)
        agree((got.y, got.params, got.inputs), expected)


def causality(c: Case, form: str):
    """No input and no gate of a token changes an earlier output; a value changes later ones."""
    inputs = c.slice(0, row_length(c))
    y = whole(c, form, inputs).y
    for t in (1, 5, WHOLE - 1):
        for name in inputs:
            changed = {**inputs, name: inputs[name].at[:, t].multiply(0.5)}
            z = whole(c, form, changed).y
            assert jnp.array_equal(y[:, :t], z[:, :t]), f"{name} at {t} changed the past"
    changed = {**inputs, "v": inputs["v"].at[:, 1].add(1.0)}
    assert not jnp.array_equal(y[:, 2:], whole(c, form, changed).y[:, 2:]), "forgot at once"


def rows_are_independent(c: Case, form: str):
    """A row of the batch changes neither outputs nor state nor gradients of another."""
    inputs = c.slice(0, row_length(c))
    changed = {n: x.at[1].multiply(0.3) for n, x in inputs.items()}
    a, b = (whole(c, form, x) for x in (inputs, changed))
    for x, z in zip(
        (a.y, a.inputs, *floats(a.state)), (b.y, b.inputs, *floats(b.state)), strict=True
    ):
        for p, r in zip(jax.tree.leaves(x), jax.tree.leaves(z), strict=True):
            assert jnp.array_equal(p[0], r[0])
    assert not jnp.array_equal(a.y[1], b.y[1])


def chunk_size_changes_nothing(c: Case):
    """For exact memories. 20 tokens in one chunk cross the blocks of 16 that it is worked in."""
    c = case(c.memory, tokens=20)
    w = walked(c)
    params = gradient_of_parameters(c, w.params, w.bars[0])
    expected = w.y, unnumbered(w.states[-1]), params, w.inputs
    for size in (1, 64):
        other = dataclasses.replace(c.memory, chunk_size=size)
        weights = [w.y_bar, *w.bars[-1]]
        got = pull(other, "chunked", c.params, None, c.inputs, None, weights)
        agree((got.y, unnumbered(got.state), got.params, got.inputs), expected)


def state_has_constant_size(c: Case):
    """However much was read; but for attention, whose state grows."""
    if not isinstance(c.memory, Attention):
        first, *others = (jax.tree.map(jnp.shape, state) for state in walked(c).states)
        assert all(shapes == first for shapes in others)
        return
    sizes = []
    for tokens in (1, 5, T):
        _, state = jax.eval_shape(lambda x: read(c.memory, c.params, x), c.slice(0, tokens))
        sizes.append(sum(x.size for x in jax.tree.leaves(state)))
    assert sizes[0] < sizes[1] < sizes[2]


def finite_differences(c: Case, form: str, together: bool = False):
    """Every input, gate, parameter and state leaf: d/de of a random direction at 0; or of one
    direction of all of them together.

    Central differences of fourth order at e = 1e-6 err by e^4 times a fifth derivative, and by
    1e-16 / e: 1e-7 of the gradient's size allows for both. The token of the recurrent form ends a
    chunk, the window of the chunked form begins with it.
    """
    begin, w = CHUNK - 1, walked(c)
    length = 1 if form == "recurrent" else WINDOW
    state, ids = w.states[begin], jnp.zeros((B, length), jnp.int32)
    weights = normal((w.y[:, :length], state), seed=4)
    at = {"params": c.params, "state": floats(state), **c.slice(begin, begin + length)}

    def run(arguments):
        arguments = dict(arguments)
        params, begun = arguments.pop("params"), with_floats(state, arguments.pop("state"))
        return pull(c.memory, form, params, begun, arguments, ids, weights)

    here = run(at)
    gradient = {"params": here.params, "state": here.begun, **here.inputs}
    rng = np.random.default_rng(5)
    directions = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), at)
    for names in [list(at)] if together else [[name] for name in at if jax.tree.leaves(at[name])]:
        mine = {n: directions[n] for n in names}

        def moved(e, mine=mine):
            change = jax.tree.map(lambda x, d: x + e * d, {n: at[n] for n in mine}, mine)
            return run({**at, **change}).loss

        e = 1e-6
        numeric = (8 * (moved(e) - moved(-e)) - (moved(2 * e) - moved(-2 * e))) / (12 * e)
        slopes = {n: gradient[n] for n in names}
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), slopes, mine)
        size = sum(jnp.sum(jnp.abs(g)) for g in jax.tree.leaves(slopes))
        assert abs(numeric - sum(jax.tree.leaves(products))) <= 1e-7 * max(size, 1.0), names


def corners(count: int) -> Iterator[tuple[int, ...]]:
    """Corners of a cube of so many sides: every pair of ends of every two, all corners of three."""
    seen = [(0,) * count, (1,) * count]
    for i in range(count):
        one = tuple(int(j == i) for j in range(count))
        seen += [one, tuple(1 - x for x in one)]
    return iter(dict.fromkeys(seen))


def ends(name: str, gate) -> tuple[float, float]:
    """Both ends of a gate: exp(-30) is 1e-13; a threshold may be infinite, other gates without an
    upper end are sizes of steps."""
    low, high = gate.range
    if np.isinf(high):
        high = np.inf if name == "threshold" else 1.0
    return max(low, -30.0), high


def finite_at_extremes(c: Case, form: str):
    """Gates at their ends and in turn with the other end, a repeated key, a zero key, value and
    query, in float32."""
    c = case(c.memory, dtype=jnp.float32)
    inputs = c.slice(0, row_length(c))
    inputs["q"] = inputs["q"].at[:, 4].set(0.0)
    inputs["v"] = inputs["v"].at[:, 9].set(0.0)
    gates = {name: gate for name, gate in c.memory.gates.items() if not gate.is_input}
    for name, x in inputs.items():
        if name not in gates and name not in "qv":
            inputs[name] = x.at[:, 3:6].set(x[:, 2:3]).at[:, 8].set(0.0)
    state = jax.eval_shape(lambda: c.state())
    weights = [*normal(inputs["v"], seed=1), *normal(state, seed=2)]
    for corner, alternate in itertools.product(corners(len(gates)), (False, True)):
        extreme = dict(inputs)
        for (name, gate), end in zip(gates.items(), corner, strict=True):
            pair = ends(name, gate)
            x = jnp.full_like(inputs[name], pair[end])
            extreme[name] = x.at[:, ::2].set(pair[1 - end]) if alternate else x
        for leaf in floats(whole(c, form, extreme, weights)):
            assert jnp.isfinite(leaf).all(), (corner, alternate)


def state_can_be_donated_and_is_cast(c: Case):
    """Every leaf is a buffer of its own; a float32 state continues in float64."""
    step = jax.jit(lambda x, state: apply(c.memory, c.params, x, state=state), donate_argnums=1)
    state, w = c.state(), walked(c)
    for begin in (0, WINDOW):
        y, state = step(c.slice(begin, begin + WINDOW), state)
        assert all(x.dtype == jnp.float64 for x in (y, *floats(state)))
        # The states were rounded to float32, 6e-8 of their entries.
        close(y, w.y[:, begin : begin + WINDOW], rtol=1e-5)
        state = with_floats(state, [x.astype(jnp.float32) for x in floats(state)])


def products_keep_their_precision(c: Case):
    """Under transformations, too: on accelerators a product of default precision is one of
    bfloat16 or TF32."""
    c = case(c.memory, dtype=jnp.float32, tokens=CHUNK + 1)

    def loss(params, inputs):
        return sum(map(jnp.sum, floats(apply(c.memory, params, inputs))))

    for transformed in (
        jax.grad(jax.jit(loss), argnums=(0, 1)),
        jax.grad(jax.checkpoint(loss), argnums=(0, 1)),
    ):
        dots = list(_dots(jax.make_jaxpr(transformed)(c.params, c.inputs).jaxpr))
        assert dots or c.memory.forms == ("recurrent",)
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


def bfloat16_inputs_keep_a_float32_state(c: Case):
    """All that bfloat16 inputs cost is the rounding of the inputs and of y."""
    c = case(c.memory, dtype=jnp.float32)
    low = {n: x.astype(jnp.bfloat16) for n, x in c.slice(0, row_length(c)).items()}
    y, state = read(c.memory, c.params, low)
    assert y.dtype == jnp.bfloat16
    assert floats(state)
    assert all(x.dtype == jnp.float32 for x in floats(state))
    # The same numbers read in float32: only the rounding of y to bfloat16 (2^-8) is left.
    same = {n: x.astype(jnp.float32) for n, x in low.items()}
    expected = whole(c, c.memory.forms[-1], same, [*normal(same["v"], 1), *zeros(state)])
    close(y.astype(jnp.float32), expected.y, rtol=2.0**-8)


def refusals(c: Case):
    """Arguments that do not fit are refused in words before anything is computed."""
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
    other = memory_of("deltanet" if isinstance(c.memory, Attention) else "transformer")
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
