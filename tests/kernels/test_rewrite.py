"""Operations put together from others give what they stand for, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.rewrite import rewritten

X = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
HIGHEST = jax.lax.Precision.HIGHEST


def three_parts(x):
    y = jnp.dot(jnp.concatenate([x, 2 * x, 3 * x]), X.T, precision=HIGHEST)
    return y[:32] + y[64:]


EXACT = {
    "an aligned slice": lambda x: x[8:16] * x[16:24],
    "a row": lambda x: x[-1:] + x[3],
    "every other row": lambda x: x[1::2],
    "a row by its number": lambda x: jax.lax.dynamic_slice(x, (jnp.int32(5), 0), (1, 16)),
    "a row in its place": lambda x: jax.lax.dynamic_update_slice(x, 2 * x[:1], (jnp.int32(7), 0)),
    "a concatenation": lambda x: jnp.concatenate([x, x + 1.0], axis=1),
    "a stack": lambda x: jnp.stack([x, x + 1.0]).sum(axis=2),
    "padding": lambda x: jnp.pad(x, ((32, 0), (0, 16))),
    "any and all": lambda x: x * (jnp.any(x > 2, axis=1) | jnp.all(x < 1, axis=1))[:, None],
    "a call": jax.jit(lambda x: jax.nn.gelu(x)),
    "a loop": lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y + x[4:8].sum() * i, x),
    "a running sum": lambda x: jnp.cumsum(x, axis=1),
}
ROUNDED = {
    "a running sum from the end": lambda x: jax.lax.cumsum(x, axis=0, reverse=True),
    "parts": three_parts,
    "a narrow product": lambda x: jnp.dot(x, x[:4].T, precision=HIGHEST),
    "a batch": lambda x: jnp.einsum("bij,bkj->bik", *[x.reshape(4, 8, 16)] * 2, precision=HIGHEST),
    "two contracted axes": lambda x: jnp.einsum(
        "bij,kij->bk", *[x.reshape(4, 8, 16)] * 2, precision=HIGHEST
    ),
}


def both(function):
    def pulled(x):
        y, pull = jax.vjp(function, x)
        return y, pull(y)[0]

    return jax.jit(rewritten(pulled))(X), jax.jit(pulled)(X)


@pytest.mark.parametrize("what", EXACT)
def test_moves_are_exact(what):
    # Derivatives of moves add up, in another order than XLA's.
    for got, wanted in zip(*both(EXACT[what]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("what", ROUNDED)
def test_products_round_as_float32(what):
    for got, wanted in zip(*both(ROUNDED[what]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("by", [1, -1, 4, 16])
def test_rotations_are_exact_to_float32(axis, by):
    got = jax.jit(rewritten(lambda x: jnp.roll(x, by, axis)))(X)
    np.testing.assert_allclose(got, np.roll(X, by, axis), rtol=2.0**-22)


def test_default_precision_rounds_to_bfloat16():
    rounded = X.astype(jnp.bfloat16).astype(np.float32)
    got = jax.jit(rewritten(lambda x: x @ x.T))(X)
    np.testing.assert_allclose(got, rounded @ rounded.T, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[1:],
        lambda x: x[4:20],
        lambda x: jnp.concatenate([x, x, x]),
        lambda x: jnp.pad(x, ((1, 0), (0, 0))),
        lambda x: jnp.einsum("bij,bkj->bik", *[jnp.tile(x.reshape(32, 2, 8), (1, 64, 1))] * 2),
    ],
)
def test_what_cannot_be_is_refused(function):
    with pytest.raises(NotImplementedError, match="A Triton kernel cannot"):
        jax.eval_shape(rewritten(function), X)
