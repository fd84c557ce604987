"""Loss and gradients on a (2, 2, 2) mesh equal those without one, for every row of the zoo.

Small activations on three axes are where XLA's partitioner, left to itself, returned gradients
that were wrong by tens of percent while the loss was right.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import miras_jax as mj
from miras_jax.nn import LanguageModel, ModelConfig, partition
from tests.meshes import assert_same_gradient, gradient_on, loss, two_by_two_by_two
from tests.nights import FEW, nightly_but

CONFIG = ModelConfig(dim=16, depth=2, heads=2, vocab_size=32, ff_dim=32)


# Rows and tokens were part of what made the partitioner go wrong: four shapes for one memory of
# each kind, one for each other. The models that mix by attention too have tests of their own.
SHAPES = [(rows, total) for rows in (4, 8) for total in (8, 16)]
EVERY_SHAPE = ("yaad", "gated_deltanet", "transformer")
CASES = [
    (row.name, *shape)
    for row in mj.zoo.table()
    if row.block == "memory"
    for shape in (SHAPES if row.name in EVERY_SHAPE else SHAPES[:1])
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "total"),
    nightly_but(
        CASES,
        [
            case
            for case in CASES
            if case[0] == "yaad" or (case[0] in FEW and case[1:] in (SHAPES[0], SHAPES[-1]))
        ],
    ),
)
def test_mesh_changes_nothing(name, rows, total):
    chunk = {} if name == "transformer" else {"chunk_size": 4}
    config = dataclasses.replace(CONFIG, memory=name, **chunk)
    model = LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (rows, total + 1)))
    expected = jax.jit(jax.value_and_grad(loss))(model, tokens)

    mesh = two_by_two_by_two()
    with jax.set_mesh(mesh):
        got = gradient_on(mesh, model, tokens)
    # Newton-Schulz multiplies rounding five hundredfold, twice over two chunks (seen: 1.3e-2).
    assert_same_gradient(got, expected, rounding=5e-2 if name == "lact" else 3e-4)


@pytest.mark.parametrize("name", ["yaad", "deltanet", "transformer"])
def test_states_and_packed_rows_on_a_mesh(name):
    """Half a packed row, then the rest with the carried state, as without a mesh."""
    config = dataclasses.replace(CONFIG, memory=name, depth=1)
    model = LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (4, 12)))
    ids = jnp.asarray([[0] * 3 + [1] * 6 + [2] * 3] * 4)

    def halves(model, tokens, ids):
        a, state = model(tokens[:, :5], None, ids[:, :5])
        b, state = model(tokens[:, 5:], state, ids[:, 5:])
        return jnp.concatenate([a, b], axis=1)

    expected = jax.jit(halves)(model, tokens, ids)
    mesh = two_by_two_by_two()
    with jax.set_mesh(mesh):
        got = jax.jit(halves)(model, tokens, ids)
    # Float32 logits summed in another order.
    assert np.abs(np.asarray(got) - np.asarray(expected)).max() < 2e-5


def test_every_parameter_has_a_rule():
    """Large matrices are split over fsdp and tensor, heads over tensor; nothing is left out."""
    mesh = jax.sharding.AbstractMesh((1, 2, 1, 2), partition.AXES)
    config = dataclasses.replace(CONFIG, memory="titans", tie_embeddings=False)
    shapes = jax.eval_shape(
        lambda key: LanguageModel(config, rngs=nnx.Rngs(key)), jax.random.key(0)
    )
    specs = {
        jax.tree_util.keystr(path): partition.spec_of(jax.tree_util.keystr(path), x.shape, mesh)
        for path, x in jax.tree_util.tree_leaves_with_path(shapes)
    }
    named = lambda part: next(spec for path, spec in specs.items() if part in path)  # noqa: E731
    assert named(".memory.query.kernel") == P(None, "fsdp", "tensor")
    assert named(".memory.output.kernel") == P(None, "tensor", "fsdp")
    assert named(".swiglu.down.kernel") == P(None, "tensor", "fsdp")
    assert named(".start.layer_1") == P(None, "tensor", None, "fsdp")
    assert named("embedding") == P("tensor", "fsdp")
    assert named(".head.kernel") == P("fsdp", "tensor")
    assert named(".convolutions.key") == P(None, None, "tensor")
    assert set(named("gates.step.expand.bias")) == {None}
    with pytest.raises(ValueError, match=r"No sharding rule matches the parameter \.new"):
        partition.spec_of(".new", (2, 2), mesh)
