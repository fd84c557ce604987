"""Under a mesh the kernels run inside `shard_map`, heads over `tensor`, rows over `data, fsdp`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kernels_pallas
from miras_jax.nn import LanguageModel, ModelConfig
from tests.meshes import assert_same_gradient, gradient_on, loss, two_by_two_by_two

CONFIG = ModelConfig(dim=16, depth=1, heads=2, vocab_size=32, ff_dim=32)


@pytest.mark.parametrize("name", ["yaad", "gated_deltanet"])
def test_kernels_on_a_mesh_equal_pure_jax_without_one(name):
    config = dataclasses.replace(CONFIG, memory=name, chunk_size=4)
    model = LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (4, 9)))
    expected = jax.jit(jax.value_and_grad(loss))(model, tokens)

    mesh = two_by_two_by_two()
    with kernels_pallas.override(form="pallas_tpu", interpret=True), jax.set_mesh(mesh):
        assert "pallas_call" in str(jax.make_jaxpr(loss)(model, tokens))
        got = gradient_on(mesh, model, tokens)
    assert_same_gradient(got, expected)
