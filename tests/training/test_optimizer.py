"""The learning rate over a run, the update, and which parameters decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from miras_jax.nn import LanguageModel
from miras_jax.training import OptimizerConfig
from miras_jax.training.optimizer import decay_mask, learning_rate, make_optimizer
from tests.training.toy import MODEL, toy


def test_learning_rate_warms_up_and_ends_at_the_fraction(tmp_path):
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1)
    schedule = learning_rate(toy(tmp_path, optimizer=optimizer, steps=105))
    rates = np.array([schedule(done) for done in range(105)])  # of every update that is made
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)
    assert np.all(np.diff(rates[4:]) < 0)
    np.testing.assert_allclose(rates[54], 0.55, rtol=1e-6)  # half way down
    np.testing.assert_allclose(rates[-1], 0.1, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_learning_rate_is_positive_and_at_most_the_peak(tmp_path, warmup):
    config = toy(tmp_path, optimizer=OptimizerConfig(learning_rate=1.0, warmup_steps=warmup))
    rates = np.array([learning_rate(config)(done) for done in range(config.steps)])
    assert np.all(rates > 0)
    assert np.all(rates <= 1)


def test_update_is_adamw_of_the_clipped_gradient(tmp_path):
    o = OptimizerConfig(warmup_steps=1, clip_norm=1.0)
    config = toy(tmp_path, optimizer=o)
    optimizer = make_optimizer(config)
    random = np.random.default_rng(0)
    params = {"kernel": random.normal(size=(3, 4)), "bias": random.normal(size=4)}
    state = optimizer.init(jax.tree.map(jnp.float32, params))
    mu = nu = dict.fromkeys(params, 0.0)
    for step in (1, 2):
        grads = {name: random.normal(size=x.shape) for name, x in params.items()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        grads = {name: 10 * g / norm for name, g in grads.items()}
        updates, state = optimizer.update(
            jax.tree.map(jnp.float32, grads), state, jax.tree.map(jnp.float32, params)
        )
        clipped = {name: g / 10 for name, g in grads.items()}
        mu = {name: o.b1 * mu[name] + (1 - o.b1) * g for name, g in clipped.items()}
        nu = {name: o.b2 * nu[name] + (1 - o.b2) * g**2 for name, g in clipped.items()}
        for name, x in params.items():
            mean, square = mu[name] / (1 - o.b1**step), nu[name] / (1 - o.b2**step)
            decay = o.weight_decay * x if name == "kernel" else 0
            # Both updates are made at the peak: the last of the warm-up, the first of the cosine.
            expected = -o.learning_rate * (mean / (np.sqrt(square) + 1e-8) + decay)
            np.testing.assert_allclose(updates[name], expected, rtol=1e-5)
            np.testing.assert_allclose(optax.tree.get(state, "mu")[name], mu[name], rtol=1e-5)
            np.testing.assert_allclose(optax.tree.get(state, "nu")[name], nu[name], rtol=1e-5)
        params = {name: x + np.asarray(updates[name]) for name, x in params.items()}


@pytest.mark.parametrize("memory", ["deltanet", "yaad"])
def test_only_projections_decay(memory):
    config = dataclasses.replace(MODEL, memory=memory, tie_embeddings=False)
    params = jax.eval_shape(
        lambda key: LanguageModel(config, rngs=nnx.Rngs(key)), jax.random.key(0)
    )
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
    decayed = {jax.tree_util.keystr(path) for path, yes in mask if yes}
    kept = {jax.tree_util.keystr(path) for path, yes in mask if not yes}
    for name in ("query", "key", "value", "output.", "down", "up", "head"):
        assert any(name in path for path in decayed), name
    for name in ("embedding", "norm", "bias", "convolution", *["start"] * (memory == "yaad")):
        assert any(name in path for path in kept), name
        assert not any(name in path for path in decayed), name
