"""The kernels' triangular solve against numpy, for keys that resemble each other, large steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.triangular import inverse_unit_lower, solve_unit_lower
from tests.cases import close


def system(size, cosine, step):
    """The coupling of a delta rule whose keys have that cosine with each other."""
    rng = np.random.default_rng(size)
    apart = rng.normal(size=(size, 63))
    apart /= np.linalg.norm(apart, axis=1, keepdims=True)
    common = np.full((size, 1), np.sqrt(cosine))
    keys = np.concatenate([common, np.sqrt(1 - cosine) * apart], axis=1)
    return step * np.tril(keys @ keys.T, -1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [1, 2, 8, 16, 32, 48, 64, 80, 112, 128])
@pytest.mark.parametrize("slices", [True, False])
def test_solves_and_differentiates(size, slices):
    lower, rng = system(size, 0.5, 2.0), np.random.default_rng(1)
    b, d = rng.normal(size=(2, size, 3))

    def solve(lower, b):
        return solve_unit_lower(lower, b, "highest", slices)

    x, pull = jax.vjp(jax.jit(solve), jnp.asarray(lower), jnp.asarray(b))
    whole = np.eye(size) + lower
    wanted = np.linalg.solve(whole, b)
    close(x, wanted, rtol=1e-12)
    d_lower, d_b = pull(jnp.asarray(d))
    wanted_d = np.linalg.solve(whole.T, d)
    close(d_b, wanted_d, rtol=1e-12)
    close(d_lower, np.tril(-wanted_d @ wanted.T, -1), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize(("cosine", "step"), [(0.0, 1.0), (0.5, 1.0), (0.9, 1.0), (0.9, 2.0)])
@pytest.mark.parametrize("precision", ["highest", "bfloat16x6", "bfloat16x3"])
def test_float32_stays_accurate(size, cosine, step, precision):
    lower = system(size, cosine, step)
    wanted = np.linalg.inv(np.eye(size) + lower)
    got = inverse_unit_lower(jnp.asarray(lower, jnp.float32), precision)
    error = np.abs(np.asarray(got, np.float64) - wanted).max() / np.abs(wanted).max()
    # Seen: 5e-6 in float32 and 8e-4 with two bfloat16 numbers each, at cosine 0.9 and step 2.
    assert error < {"highest": 1e-5, "bfloat16x6": 1e-5, "bfloat16x3": 2e-3}[precision]


def test_refuses_other_sizes():
    with pytest.raises(ValueError, match="multiple of it, got 20"):
        inverse_unit_lower(jnp.zeros((20, 20)))
