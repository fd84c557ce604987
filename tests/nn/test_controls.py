"""Each control breaks what it says, and nothing else."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from miras_jax import zoo
from miras_jax.memory import L2, GradientDescent, Memory
from miras_jax.nn import LanguageModel, ModelConfig, reconfigured
from miras_jax.nn.controls import Control, controlled
from tests.nights import OF_A_KIND, nightly_but

CONFIG = ModelConfig(dim=16, depth=2, heads=2, vocab_size=32, ff_dim=16, chunk_size=4)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 11)))
# One of each way to write.
ROWS = "dfw longhorn ttt_mlp rwkv7 delta_product gdn2 mesanet titans moneta memora lact yaad_h"
# They keep the tokens, or read the start of their chunks anyway.
UNMOVED = ("transformer", "sliding_window_attention", "lact")
read = jax.jit(lambda model, tokens: model(tokens))


def model_of(name: str, control: Control | None = None) -> LanguageModel:
    config = dataclasses.replace(CONFIG, memory=name, control=control)
    return LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))


def weights_of(state):
    layers = state.layers
    while not hasattr(layers, "convolution"):
        layers = layers.memory
    return layers.memory.weights


@pytest.mark.parametrize("name", ROWS.split())
def test_a_frozen_memory_stays_what_it_was(name):
    model = model_of(name, "frozen")
    before, after = model.init_state(2, 11), read(model, TOKENS)[1]
    for x, y in zip(*map(jax.tree.leaves, map(weights_of, (before, after))), strict=True):
        # Links that rescale, and momentum of zeros, round.
        np.testing.assert_allclose(x, y, atol=1e-5)
    free = read(model_of(name), TOKENS)[1]
    moved = [
        float(jnp.max(jnp.abs(x - y)))
        for x, y in zip(*map(jax.tree.leaves, map(weights_of, (before, free))), strict=True)
    ]
    assert max(moved) > 1e-3


@pytest.mark.parametrize(
    "name", ["deltanet", "linear_attention", "longhorn", "yaad", "rwkv7", "gdn2"]
)
def test_ascent_writes_with_the_opposite_sign(name):
    """After one token the change is the other way round, where nothing but the write changes it."""
    start = weights_of(model_of(name).init_state(2, 1))
    down, up = (weights_of(read(model_of(name, c), TOKENS[:, :1])[1]) for c in (None, "ascent"))
    first = jax.tree.map(lambda x: x[0], (start, down, up))  # of the first block: same inputs
    for a0, a, b in zip(*map(jax.tree.leaves, first), strict=True):
        np.testing.assert_allclose(b - a0, a0 - a, atol=1e-6)
        assert jnp.max(jnp.abs(a - a0)) > 1e-4


def test_values_come_from_the_document_so_far():
    q, k, v = jax.random.normal(jax.random.key(1), (3, 2, 9, 2, 4))
    v = v.at[..., 0].set(jnp.arange(9.0)[:, None])
    positions = jnp.asarray([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 0, 1, 2, 3, 4, 5]])
    gates = {"value_2": 2 * v, "step": v[..., 0]}
    args = ("shuffled_values", q, k, v, gates, positions)
    q2, k2, v2, gates2 = controlled(*args, 0)
    source = np.asarray(v2[:, :, 0, 0])
    assert np.all(source <= np.arange(9))
    assert np.all(source >= np.arange(9) - np.asarray(positions))
    assert np.any(source != np.arange(9))
    assert np.array_equal(q, q2)
    assert np.array_equal(k, k2)
    assert np.array_equal(gates2["value_2"], 2 * v2)
    assert np.array_equal(gates2["step"], gates["step"])
    assert not np.array_equal(controlled(*args, 1)[2], v2)  # another layer
    later = controlled(*args[:3], v.at[:, 5:].add(1.0), *args[4:], 0)[2]
    assert np.array_equal(later[:, :5], v2[:, :5])  # causal


@pytest.mark.parametrize("control", get_args(Control))
@pytest.mark.parametrize("name", ["linear_attention", "gated_deltanet", "yaad_h"])
def test_a_trained_model_takes_a_control(name, control):
    model = model_of(name)
    broken = reconfigured(model, control=control)
    assert broken.config.control == control
    expected = read(model_of(name, control), TOKENS)[0]
    np.testing.assert_array_equal(read(broken, TOKENS)[0], expected)
    assert jnp.max(jnp.abs(read(model, TOKENS)[0] - expected)) > 1e-4
    back = reconfigured(broken, control=None)
    np.testing.assert_array_equal(read(back, TOKENS)[0], read(model, TOKENS)[0])


@pytest.mark.parametrize(
    ("name", "control", "message"),
    [
        ("transformer", "frozen", "keeps the tokens themselves"),
        ("deltanet", "backwards", "model.control must be one of ascent, frozen"),
        ("mesanet", "ascent", "solves for the best memory"),
        ("lact", "chunk_start_reads", "reads the start of its chunks already"),
    ],
)
def test_refusals(name, control, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, memory=name, chunk_size=None, control=control)


def test_a_memory_without_steps_cannot_stop_writing(monkeypatch):
    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))
    memory = Memory(bias=L2(), algorithm=GradientDescent(step=None))
    zoo.register(dataclasses.replace(zoo.row("deltanet"), name="whole", memory=memory))
    with pytest.raises(ValueError, match="give its algorithm a step"):
        dataclasses.replace(CONFIG, memory="whole", chunk_size=None, control="frozen")


def test_every_step_and_value_is_meant():
    q, k, v = jax.random.normal(jax.random.key(1), (3, 2, 9, 2, 4))
    names = ("step", "step_3", "step_down", "log_decay", "threshold")
    gates = dict.fromkeys(names, v[..., 0]) | {"value_3": 2 * v}
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    frozen = controlled("frozen", q, k, v, gates, positions, 0)[3]
    still = {name for name, x in frozen.items() if not jnp.any(x)}
    assert still == {"step", "step_3", "step_down", "log_decay"}
    shuffled = controlled("shuffled_values", q, k, v, gates, positions, 0)
    assert np.array_equal(shuffled[3]["value_3"], 2 * shuffled[2])


@pytest.mark.parametrize(
    "name", nightly_but([n for n in zoo.names() if n not in UNMOVED], OF_A_KIND)
)
def test_every_memory_can_read_the_starts_of_its_chunks(name):
    depth = 2 if zoo.row(name).block == "hybrid" else 1
    config = dataclasses.replace(
        CONFIG, memory=name, depth=depth, heads=4, control="chunk_start_reads"
    )
    model = LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))
    built, whole = config.build_memory(), dataclasses.replace(config, control=None).build_memory()
    assert built.read == "chunk"
    assert built.exact_gradients == whole.exact_gradients
    assert jnp.all(jnp.isfinite(read(model, TOKENS)[0]))


def test_a_configuration_with_other_parameters():
    with pytest.raises(ValueError, match="other parameters"):
        reconfigured(model_of("yaad"), ff_dim=32)
