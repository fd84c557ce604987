"""Under a mesh the kernels run inside `shard_map`: rows over `data, fsdp`, heads over `tensor`, and
over `sequence` the tokens of linear memories."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kernels_pallas
from miras_jax.nn import LanguageModel, ModelConfig
from tests.meshes import assert_same_gradient, gradient_on, loss, mesh_of

CONFIG = ModelConfig(dim=16, depth=1, heads=2, vocab_size=32, ff_dim=32)


@pytest.mark.parametrize(
    ("name", "shape"), [("yaad", (2, 2, 1, 2)), ("gated_deltanet", (2, 1, 2, 2))]
)
def test_kernels_on_a_mesh_equal_pure_jax_without_one(name, shape):
    config = dataclasses.replace(CONFIG, memory=name, chunk_size=4)
    model = LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (4, 9)))
    expected = jax.jit(jax.value_and_grad(loss))(model, tokens)

    mesh = mesh_of(*shape)
    with kernels_pallas.override(form="pallas_tpu", interpret=True), jax.set_mesh(mesh):
        assert "pallas_call" in str(jax.make_jaxpr(loss)(model, tokens))
        got = gradient_on(mesh, model, tokens)
    assert_same_gradient(got, expected)
