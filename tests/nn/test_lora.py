"""LoRA: equal to the base at the start, equal when merged, and right on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from miras_jax.nn import LanguageModel, ModelConfig
from miras_jax.nn.lora import LoraConfig, LoraLinear, add_lora, merge_lora
from miras_jax.nn.names import name_of, tensors
from tests.meshes import gradient_on, loss, two_by_two_by_two

SMALL = {"dim": 16, "depth": 2, "heads": 2, "vocab_size": 32, "ff_dim": 32, "chunk_size": 4}
CASES = {
    "deep": ModelConfig(memory="yaad", **SMALL),
    "gates of low rank": ModelConfig(memory="rwkv7", **SMALL),
    "hybrid": ModelConfig(memory="gated_deltanet", hybrid=True, window=4, **SMALL),
    "memory as context": ModelConfig(memory="titans_mac", segment=4, **SMALL),
}
TOKENS = np.random.default_rng(0).integers(0, 32, (4, 9))


def make(case: str, lora: LoraConfig) -> tuple[LanguageModel, LanguageModel]:
    """The base and the same with LoRA."""
    base, model = (LanguageModel(CASES[case], rngs=nnx.Rngs(jax.random.key(0))) for _ in range(2))
    return base, add_lora(model, lora, jax.random.key(1))


def shapes_of(case: str, lora: LoraConfig) -> LanguageModel:
    return jax.eval_shape(lambda: make(case, lora)[1])


def trained(model: LanguageModel) -> LanguageModel:
    """As if B had learned something."""

    def change(path, x):
        random = 0.3 * jax.random.normal(jax.random.key(2), x.shape)
        return random if name_of(path).endswith("lora_b") else x

    return jax.tree_util.tree_map_with_path(change, model)


@jax.jit
def read(model):
    return model(TOKENS)[0]


@pytest.mark.parametrize("case", ["deep", "hybrid"])
def test_starts_as_the_base_and_merges_to_the_same(case):
    base, model = jax.jit(lambda: make(case, LoraConfig(rank=2, alpha=3.0)))()
    expected = read(base)
    # The sum with zeros is exact; the two programs are fused differently (1.6e-7 seen).
    np.testing.assert_allclose(read(model), expected, atol=1e-6)
    assert tensors(base).keys() <= tensors(model).keys()

    model = trained(model)
    found, whole = read(model), merge_lora(model)
    assert np.abs(found - expected).max() > 0.05
    assert tensors(whole).keys() == tensors(base).keys()
    # Float32, products in another order: 6e-7 seen of logits of size 1.
    np.testing.assert_allclose(read(whole), found, atol=1e-5)
    assert merge_lora(whole) is whole


def test_layer_is_the_base_until_b_has_learned():
    layer = LoraLinear(3, 2, lora_rank=4, use_bias=False, rngs=nnx.Rngs(0))
    layer.scale = LoraConfig(rank=4, alpha=6.0).scale
    x = jnp.asarray([[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(layer(x), nnx.Linear.__call__(layer, x))
    layer.lora.lora_b[...] = jnp.arange(8.0).reshape(4, 2)
    product = x @ layer.lora.lora_a[...] @ layer.lora.lora_b[...]
    np.testing.assert_allclose(layer(x), x @ layer.kernel[...] + 1.5 * product, rtol=1e-6)
    assert LoraConfig(rank=8).scale == 2


def test_targets():
    model = shapes_of("deep", LoraConfig(rank=2))
    adapted = {name.split(".lora")[0] for name in tensors(model) if "lora_a" in name}
    memory = {f"blocks.memory.{n}" for n in ("query", "key", "value", "output", "output_gate")}
    assert adapted == memory | {f"blocks.swiglu.{n}" for n in ("gate_up", "up", "down")}
    shapes = {n: x.shape for n, x in tensors(model).items() if "down.lora" in n}
    assert list(shapes.values()) == [(2, 32, 2), (2, 2, 16)]  # a layer has its own

    model = shapes_of("deep", LoraConfig(rank=2, targets=("query", r"gates.step")))
    adapted = {name.split(".lora")[0] for name in tensors(model) if "lora_a" in name}
    assert adapted == {"blocks.memory.query", "blocks.memory.gates.step.expand"}

    names = tensors(shapes_of("memory as context", LoraConfig(rank=2)))
    # The attention, the memory and the recall each have a query.
    parts = ("memory.attention", "memory.memory", "memory")
    assert all(f"blocks.{part}.query.lora.lora_b" in names for part in parts)
    gates = LoraConfig(rank=2, targets=("gates.*reduce",))
    assert any("gates" in n and "lora" in n for n in tensors(shapes_of("gates of low rank", gates)))
    with pytest.raises(
        ValueError, match=r"'embedding' matches no projection of yaad, which has bl"
    ):
        shapes_of("deep", LoraConfig(rank=2, targets=("embedding",)))
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        LoraConfig(rank=-1)
    with pytest.raises(ValueError, match="is no pattern"):
        LoraConfig(targets=("(",))


@pytest.mark.slow
def test_mesh_changes_no_gradient():
    """As tests/nn/test_mesh.py, whose bounds these are."""
    lora = LoraConfig(rank=2, targets=("",))  # gates too
    model = trained(jax.jit(lambda: make("deep", lora)[1])())
    tokens = jnp.asarray(TOKENS)
    expected = jax.jit(jax.value_and_grad(loss))(model, tokens)
    mesh = two_by_two_by_two()
    with jax.set_mesh(mesh):
        found = gradient_on(mesh, model, tokens)
    assert abs(found[0] - expected[0]) <= 1e-5 * abs(expected[0])
    for (name, x), y in zip(tensors(expected[1]).items(), jax.tree.leaves(found[1]), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert np.abs(x - y).max() <= 3e-4 * np.abs(x).max() + 5e-7, name
