"""Sliding-window attention: the naive softmax over the last pairs, however it is computed.

Tolerances: two orders of the same float64 sums of some ten terms differ by a few 1e-16.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import miras_jax as mj
from miras_jax.memory import SlidingWindowAttention
from tests.cases import B, T, case, close, read, weigh

EXACT = 1e-12
# Windows within a block of queries, over several blocks, and longer than the sequence.
MEMORIES = [
    SlidingWindowAttention(window=5, chunk_size=2),
    SlidingWindowAttention(window=3, chunk_size=4, persistent=2),
    SlidingWindowAttention(window=32, chunk_size=4),
]
IDS = np.array(([0] * 5 + [1] + [2] * 7, [3] + [4] * 3 + [9] * 9))

pytestmark = pytest.mark.usefixtures("x64")


def naive(memory, params, inputs, ids=None):
    """The definition: a T x T mask."""
    q, k, v = (inputs[n] for n in "qkv")
    t = np.arange(q.shape[1])
    mask = (t[:, None] >= t) & (t[:, None] - t < memory.window)
    mask = np.broadcast_to(mask, (B, *mask.shape))
    if ids is not None:
        mask = mask & (ids[:, :, None] == ids[:, None, :])
    logits = jnp.where(mask[:, None], jnp.einsum("bthk,bshk->bhts", q, k), -jnp.inf)
    if memory.persistent:
        own = jnp.einsum("bthk,hpk->bhtp", q, params.weights["persistent_keys"])
        logits = jnp.concatenate([own, logits], -1)
        learned = jnp.moveaxis(params.weights["persistent_values"], 0, 1)
        learned = jnp.broadcast_to(learned, (B, *learned.shape))
        v = jnp.concatenate([learned, v], axis=1)
    return jnp.einsum("bhts,bshv->bthv", jax.nn.softmax(logits, axis=-1), v)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_equals_the_definition_with_its_gradients(memory, form):
    """Whole and in pieces, of one document and of several."""
    c = case(memory)

    def run(params, inputs, cuts, ids):
        state, ys = None, []
        for begin, end in zip((0, *cuts), (*cuts, T), strict=True):
            piece = {n: x[:, begin:end] for n, x in inputs.items()}
            part = None if ids is None else jnp.asarray(ids[:, begin:end])
            y, state = read(memory, params, piece, state=state, segment_ids=part, form=form)
            ys.append(y)
        return jnp.concatenate(ys, axis=1)

    def both(run):
        return jax.jit(jax.value_and_grad(lambda p, x: weigh(run(p, x)), argnums=(0, 1)))(
            c.params, c.inputs
        )

    for cuts, ids in (((), None), ((1, 8), None), ((3, 4), IDS)):
        got = both(lambda p, x, cuts=cuts, ids=ids: run(p, x, cuts, ids))
        close(got, both(lambda p, x, ids=ids: naive(memory, p, x, ids)), rtol=EXACT)


def test_forgets_what_leaves_the_window():
    memory = SlidingWindowAttention(window=4, chunk_size=2)
    c = case(memory)
    y, _ = read(memory, c.params, c.inputs)
    changed = dict(c.inputs, v=c.inputs["v"].at[:, 2].add(1.0))
    z, _ = read(memory, c.params, changed)
    differ = jnp.any(y != z, axis=(0, 2, 3))
    assert differ.tolist() == [2 <= t < 6 for t in range(T)]


def test_state_has_constant_size_and_memory_is_linear():
    memory = SlidingWindowAttention(window=8, chunk_size=8)
    c = case(memory)
    sizes = {
        sum(x.size for x in jax.tree.leaves(read(memory, c.params, c.slice(0, t))[1]))
        for t in (1, 5, T)
    }
    assert len(sizes) == 1

    def largest(tokens):
        x = {n: jax.ShapeDtypeStruct((1, tokens, 2, 4), jnp.float32) for n in "qkv"}
        return max(_array_sizes(jax.make_jaxpr(lambda x: mj.memorize(memory, c.params, **x))(x)))

    # The largest array is made of the tokens, with the window's slots beside them, not T x T.
    assert largest(512) <= 2.1 * largest(256)


def _array_sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (x.aval.size for x in equation.outvars)
        if "jaxpr" in equation.params:
            yield from _array_sizes(equation.params["jaxpr"])


def test_is_full_attention_within_the_window():
    memory = SlidingWindowAttention(window=T)
    c = case(memory)
    expected, _ = read(mj.zoo.get("transformer"), c.params, c.inputs)
    close(read(memory, c.params, c.inputs)[0], expected, rtol=EXACT)


@pytest.mark.parametrize("field", ["window", "persistent", "chunk_size"])
def test_refuses_numbers_that_are_too_small(field):
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        dataclasses.replace(SlidingWindowAttention(), **{field: -1})
