"""Gates per channel reach the memory through low-rank projections."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from miras_jax import zoo
from miras_jax.memory import Gate, GradientDescent, L2Decay, log_decay
from miras_jax.nn import LanguageModel, ModelConfig

NAME = "yaad_per_channel"


@pytest.fixture
def config(monkeypatch):
    """A model of the zoo's own kind, registered for one test."""
    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))
    row = zoo.row("yaad")
    memory = dataclasses.replace(
        row.memory,
        retention=L2Decay(log_decay(per="key")),
        algorithm=GradientDescent(step=Gate(per="value", initial=0.1), normalized=True),
        chunk_size=4,
    )
    zoo.register(dataclasses.replace(row, name=NAME, memory=memory))
    return ModelConfig(memory=NAME, dim=16, depth=2, heads=2, vocab_size=32, ff_dim=32, gate_rank=3)


def test_register_refuses_a_name_that_is_taken():
    with pytest.raises(ValueError, match="already has a model 'yaad'"):
        zoo.register(dataclasses.replace(zoo.row("yaad"), source="elsewhere"))


def test_projections_have_the_rank_and_start_at_the_initial_values(config):
    model = LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))
    gates = model.blocks.memory.gates
    assert gates["step"].reduce.kernel.shape == (2, 16, 3)
    assert gates["step"].expand.kernel.shape == (2, 3, 16)
    assert not hasattr(gates["threshold"], "reduce")
    layer = jax.tree.map(lambda x: x[0], model.blocks).memory
    step = layer.gates["step"](jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16))))
    assert step.shape == (2, 5, 2, 8)
    assert jnp.allclose(step, 0.1)


def test_decoding_equals_the_forward_pass_and_all_parameters_learn(config):
    model = LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(model))))
    model = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), model)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 11)))
    read = jax.jit(lambda model, *args: model(*args))
    expected, _ = read(model, tokens)
    a, state = read(model, tokens[:, :6])
    b, _ = read(model, tokens[:, 6:], state)
    # Float32 logits: a few 1e-6 of rounding.
    assert jnp.max(jnp.abs(jnp.concatenate([a, b], 1) - expected)) < 2e-5
    gradient = jax.jit(jax.grad(lambda model: jnp.mean(model(tokens)[0] ** 2)))(model)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.any(g != 0), jax.tree_util.keystr(path)
