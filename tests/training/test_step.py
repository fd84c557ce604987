"""The step: the same update on a mesh and without one, in one batch and in several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from miras_jax.nn import LanguageModel, ModelConfig
from miras_jax.nn.partition import BATCH
from miras_jax.training import MeshConfig
from miras_jax.training.optimizer import learning_rate, make_optimizer
from miras_jax.training.state import (
    abstract_state,
    create_state,
    init_state,
    make_mesh,
    shardings_of,
)
from miras_jax.training.step import evaluation_step, group_norms, train_step
from tests.training.toy import toy


def make_step(config, accumulation=1, shardings=None):
    step = functools.partial(
        train_step,
        optimizer=make_optimizer(config),
        schedule=learning_rate(config),
        accumulation=accumulation,
        shardings=shardings and shardings.params,
    )
    return jax.jit(step, donate_argnums=0, out_shardings=shardings and (shardings, None))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("step"))


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    return {
        "tokens": random.integers(0, 256, (8, 17), np.int32),
        # Rows of very different weight, so that a mean of means would be far off.
        "mask": (random.random((8, 16)) < np.linspace(0.1, 1, 8)[:, None]).astype(np.float32),
    }


@pytest.fixture
def state(config):
    return jax.jit(create_state, static_argnums=0)(config, jax.random.key(config.seed))


@pytest.fixture(scope="module")
def reference(config, batch):
    """The optimizer's state and the metrics after one step in one batch without a mesh."""
    state = jax.jit(create_state, static_argnums=0)(config, jax.random.key(config.seed))
    state, metrics = make_step(config)(state, batch)
    return state.opt, metrics


def assert_same_update(actual, expected):
    """The second moments after one step are squared gradients: a stricter test than weights."""
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6 * float(jnp.max(jnp.abs(y))))


@pytest.mark.parametrize(("mesh", "accumulation"), [((2, 2, 1), 1), ((2, 2, 2), 2)])
def test_mesh_equals_none(config, batch, reference, mesh, accumulation):
    mesh = make_mesh(MeshConfig(*mesh))
    abstract = abstract_state(config, mesh)
    shardings = shardings_of(abstract)
    with jax.set_mesh(mesh):
        state = init_state(config, abstract)
        rows = NamedSharding(mesh, PartitionSpec(BATCH))
        state, metrics = make_step(config, accumulation, shardings)(
            state, jax.device_put(batch, rows)
        )
    for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    assert_same_update((state.opt, metrics), reference)


def test_microbatches_equal_one_batch(config, batch, state, reference):
    state, metrics = make_step(config, accumulation=4)(state, batch)
    assert_same_update((state.opt, metrics), reference)


def test_loss_is_the_weighted_mean_and_the_state_is_donated(config, batch, state):
    logits, _ = jax.jit(lambda model, tokens: model(tokens))(state.params, batch["tokens"][:, :-1])
    log_probabilities = np.asarray(jax.nn.log_softmax(logits), np.float64)
    targets = batch["tokens"][:, 1:, None]
    losses = -np.take_along_axis(log_probabilities, targets, axis=-1)[..., 0]
    expected = (losses * batch["mask"]).sum() / batch["mask"].sum()

    old = jax.tree.leaves(state)
    new, metrics = make_step(config)(state, batch)
    np.testing.assert_allclose(metrics["train/loss"], expected, rtol=1e-5)
    assert int(new.step) == 1
    assert metrics["train/update_norm"] > 0
    assert all(x.is_deleted() for x in old)


def test_norms_of_groups_make_up_the_whole(reference):
    _, metrics = reference
    for name in ("train/grad_norm", "train/update_norm"):
        groups = [x for n, x in metrics.items() if n.startswith(name + "/")]
        np.testing.assert_allclose(np.linalg.norm(groups), metrics[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("yaad", "embeddings convolutions gates starts norms projections"),
        ("rwkv7", "embeddings gates norms coefficients projections"),
        ("titans_mac", "embeddings convolutions gates starts norms projections"),
        ("transformer", "embeddings norms projections"),
    ],
)
def test_every_parameter_has_a_group(memory, expected):
    config = ModelConfig(memory=memory, dim=8, depth=1, heads=2)
    norms = jax.eval_shape(
        lambda: group_norms(LanguageModel(config, rngs=nnx.Rngs(0))),
    )
    assert set(norms) == set(expected.split())


def test_evaluation_sums_over_rows(batch, state):
    tokens, mask = batch["tokens"], batch["mask"]
    step = jax.jit(evaluation_step)
    sums = step(state.params, {"tokens": tokens, "mask": mask})
    assert sums["tokens"] == mask.sum()
    one = step(state.params, {"tokens": tokens[:3], "mask": mask[:3]})
    two = step(state.params, {"tokens": tokens[3:], "mask": mask[3:]})
    np.testing.assert_allclose(sums["nats"], one["nats"] + two["nats"], rtol=1e-5)
