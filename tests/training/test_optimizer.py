"""The learning rate over a run, and which parameters decay."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from miras_jax.nn import LanguageModel
from miras_jax.training import OptimizerConfig
from miras_jax.training.optimizer import decay_mask, learning_rate
from tests.training.toy import MODEL, toy


def test_learning_rate_warms_up_and_ends_at_the_fraction(tmp_path):
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1)
    schedule = learning_rate(toy(tmp_path, optimizer=optimizer, steps=104))
    rates = np.array([schedule(done) for done in range(105)])
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)
    assert np.all(np.diff(rates[4:]) < 0)
    np.testing.assert_allclose(rates[54], 0.55, rtol=1e-6)  # half way down
    np.testing.assert_allclose(rates[104], 0.1, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1, 6, 50])
def test_learning_rate_is_positive_and_at_most_the_peak(tmp_path, warmup):
    config = toy(tmp_path, optimizer=OptimizerConfig(learning_rate=1.0, warmup_steps=warmup))
    rates = np.array([learning_rate(config)(done) for done in range(config.steps)])
    assert np.all(rates > 0)
    assert np.all(rates <= 1)


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
