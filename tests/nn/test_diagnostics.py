"""What the inner loops of a whole model did, against the states that its forward pass leaves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from miras_jax import zoo
from miras_jax.memory import Memory
from miras_jax.nn import LanguageModel, ModelConfig, partition
from miras_jax.nn.memory_layer import LayerState

SMALL = ModelConfig(dim=16, depth=2, heads=2, vocab_size=32, ff_dim=32)
LEARNING = [row.name for row in zoo.table() if isinstance(row.memory, Memory)]
# A chunked delta rule, a deep memory with gradients at the chunk's start, and memories beside,
# before and behind attention.
MODELS = {
    "delta": {"memory": "gated_deltanet"},
    "deep": {"memory": "yaad"},
    "hybrid": {"memory": "gated_deltanet", "hybrid": True, "window": 5},
    "mag": {"memory": "titans_mag", "window": 5},
    "mac": {"memory": "titans_mac", "segment": 6},
}


def config_of(**changes) -> ModelConfig:
    return dataclasses.replace(SMALL, chunk_size=4, **changes)


def model_of(name: str) -> LanguageModel:
    return LanguageModel(config_of(**MODELS[name]), rngs=nnx.Rngs(jax.random.key(0)))


def tokens_of(batch: int, total: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 32, (batch, total)))


def memories(layers) -> LayerState:
    """The states of the memories, of whatever pairs they are part of."""
    while not isinstance(layers, LayerState):
        layers = layers.memory
    return layers


read = jax.jit(lambda model, *args: model(*args))
diagnose = jax.jit(lambda model, *args: model.diagnose(*args))


@pytest.mark.parametrize("name", MODELS)
def test_says_what_the_forward_pass_leaves(name):
    """The norm after the last token is that of the states, layer by layer and head by head; cut
    anywhere, in the middle of chunks and segments, it is the same."""
    model, tokens = model_of(name), tokens_of(2, 14)
    whole = diagnose(model, tokens)
    _, state = read(model, tokens)
    assert memories(state.layers).diagnostics is None
    layers = 1 if name == "hybrid" else 2
    assert {x.shape for x in whole} == {(layers, 2, 14, 2)}
    weights = memories(state.layers).memory.weights
    norm = jnp.sqrt(sum(jnp.sum(w * w, axis=(-2, -1)) for w in weights.values()))
    # The chunked and the recurrent form differ by float32 rounding.
    np.testing.assert_allclose(whole.memory_norm[:, :, -1], norm, rtol=1e-5)
    assert jnp.all(whole.step_norm > 0)

    _, state = read(model, tokens[:, :9])
    rest = diagnose(model, tokens[:, 9:], state)
    for x, y in zip(rest, whole, strict=True):
        np.testing.assert_allclose(x, y[:, :, 9:], rtol=1e-4, atol=1e-5)


def test_gates_stand_at_their_layer_and_head():
    """A new model's gates are the initial ones of each head; each layer is then moved by hand."""
    model = model_of("deep")
    said = diagnose(model, tokens_of(1, 6))
    np.testing.assert_allclose(said.step, 0.5, rtol=1e-5)
    rates = np.exp(np.geomspace(-0.001, -0.1, 2))
    np.testing.assert_allclose(said.retention, np.broadcast_to(rates, (2, 1, 6, 2)), rtol=1e-5)
    bias = model.blocks.memory.gates["step"].expand.bias
    bias[...] = bias[...].at[1, 0].set(np.log(0.1 / 0.9))  # of layer 1 and head 0
    said = diagnose(model, tokens_of(1, 6))
    expected = np.full((2, 1, 6, 2), 0.5, np.float32)
    expected[1, :, :, 0] = 0.1
    np.testing.assert_allclose(said.step, expected, rtol=1e-5)


def test_a_delta_rule_learns_each_pair_and_a_document_begins_anew():
    model, tokens = model_of("delta"), tokens_of(1, 12)
    ids = jnp.asarray([[0] * 7 + [3] * 5])
    said = diagnose(model, tokens, None, ids)
    # A step of 1/2 on a key of unit norm halves the residual.
    assert jnp.all(said.loss_after < 0.5 * said.loss_before + 1e-6)
    alone = diagnose(model, tokens[:, 7:])
    for x, y in zip(said, alone, strict=True):
        np.testing.assert_allclose(x[:, :, 7:], y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "shape"), [("hybrid", (2, 2, 1, 2)), ("mac", (2, 1, 2, 2))])
def test_a_mesh_changes_nothing(name, shape):
    model, tokens = model_of(name), tokens_of(4, 8)
    expected = diagnose(model, tokens)
    mesh = jax.make_mesh(shape, partition.AXES, axis_types=(AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        got = diagnose(model, tokens)
    for x, y in zip(got, expected, strict=True):
        # Float32 sums in another order.
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LEARNING)
def test_every_row_can_be_diagnosed(name):
    """Traced only: the shapes."""

    def shapes(key):
        return LanguageModel(config_of(memory=name), rngs=nnx.Rngs(key)).diagnose(tokens_of(1, 6))

    layers = 1 if zoo.row(name).block == "hybrid" else 2
    said = jax.eval_shape(shapes, jax.random.key(0))
    assert {(x.shape, x.dtype.name) for x in said} == {((layers, 1, 6, 2), "float32")}


@pytest.mark.parametrize("name", ["transformer", "sliding_window_attention"])
def test_attention_has_no_inner_loop(name):
    config = dataclasses.replace(SMALL, memory=name)
    model = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    with pytest.raises(NotImplementedError, match=f"{name} keeps pairs and has no inner loop"):
        model.diagnose(tokens_of(1, 3))
