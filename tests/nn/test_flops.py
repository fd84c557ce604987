"""The analytic FLOPs against the compiler's count, where the compiler can count."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from miras_jax.nn import LanguageModel, ModelConfig


@pytest.mark.parametrize("name", ["linear_attention", "gated_deltanet", "yaad", "transformer"])
def test_flops_agree_with_the_compiler(name):
    """One block and one chunk, because the compiler counts the body of a loop once.

    It also counts what is elementwise, the triangular solve and the masked half of causal products;
    at this width they are less than a quarter of the whole.
    """
    window = 32
    chunk = {} if name == "transformer" else {"chunk_size": window}
    config = ModelConfig(memory=name, dim=128, depth=1, heads=2, remat=False, **chunk)
    shapes = jax.eval_shape(
        lambda key: LanguageModel(config, rngs=nnx.Rngs(key)), jax.random.key(0)
    )
    tokens = jax.ShapeDtypeStruct((1, window), jnp.int32)
    compiled = jax.jit(lambda model, tokens: model(tokens)[0]).lower(shapes, tokens).compile()
    counted = compiled.cost_analysis()["flops"] / window
    assert 0.75 * counted <= config.flops_per_token(window) <= counted


def test_only_attention_pays_for_the_window():
    cost = lambda name, window: ModelConfig(memory=name).flops_per_token(window)  # noqa: E731
    assert cost("yaad", 64) == cost("yaad", 4096)
    assert cost("transformer", 4096) > 1.5 * cost("transformer", 64)
