"""The triangular solve against LAPACK, with correlated keys and large steps too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from miras_jax.memory.triangular import solve_unit_lower
from tests.cases import close

pytestmark = pytest.mark.usefixtures("x64")


def delta_system(length: int, cosine: float, step: float, seed: int = 0) -> np.ndarray:
    """The coupling of a delta rule whose keys have that cosine with each other."""
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(length, 64))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    common = np.eye(64)[0]
    keys = np.sqrt(cosine) * common + np.sqrt(1 - cosine) * (keys - keys[:, :1] * common)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    return step * np.tril(keys @ keys.T, -1)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 64])
@pytest.mark.parametrize(("cosine", "step"), [(0.0, 1.0), (0.5, 1.0), (0.9, 2.0)])
def test_solves_and_differentiates(length, cosine, step):
    system = delta_system(length, cosine, step)
    rng = np.random.default_rng(1)
    b, ct = rng.normal(size=(2, length, 3))
    eye = np.eye(length)
    x, backward = jax.vjp(solve_unit_lower, jnp.asarray(system), jnp.asarray(b))
    expected = scipy.linalg.solve_triangular(eye + system, b, lower=True, unit_diagonal=True)
    close(x, expected, rtol=1e-12)
    lower_bar, b_bar = backward(jnp.asarray(ct))
    expected_b = scipy.linalg.solve_triangular(
        eye + system, ct, lower=True, unit_diagonal=True, trans="T"
    )
    close(b_bar, expected_b, rtol=1e-12)
    close(lower_bar, np.tril(-expected_b @ expected.T, -1), rtol=1e-12)


@pytest.mark.parametrize(("cosine", "step"), [(0.0, 1.0), (0.5, 1.0), (0.9, 1.0), (0.9, 2.0)])
def test_float32_stays_as_accurate_as_substitution(cosine, step):
    """Within ten times LAPACK's own float32 error, row by row substitution's."""
    system, b = delta_system(64, cosine, step), np.random.default_rng(2).normal(size=(64, 8))
    exact = scipy.linalg.solve_triangular(np.eye(64) + system, b, lower=True)
    low = [np.asarray(x, np.float32) for x in (system, b)]
    lapack = scipy.linalg.solve_triangular(
        np.eye(64, dtype=np.float32) + low[0], low[1], lower=True
    )
    ours = np.asarray(solve_unit_lower(*map(jnp.asarray, low)))
    error = np.abs(ours - exact).max()
    assert error <= 10 * max(np.abs(lapack - exact).max(), 1e-7 * np.abs(exact).max())
