"""What "auto" takes in pure JAX, and that it is the form it says."""

import jax
import jax.numpy as jnp
import pytest

import miras_jax as mj
from miras_jax.memory import DotProduct, Memory, Momentum
from miras_jax.memory.automatic import pure_forms
from tests.cases import CHUNK, apply, case, close, memory_of


@pytest.mark.parametrize(
    ("name", "total", "values", "derivatives"),
    [
        ("linear_attention", 1, "recurrent", "recurrent"),
        ("linear_attention", 64, "chunked", "chunked"),
        ("linear_attention", 256, "recurrent", "associative"),
        ("linear_attention", 1024, "recurrent", "chunked"),
        ("retnet", 64, "recurrent", "chunked"),
        ("retnet", 1024, "recurrent", "associative"),
        ("gla", 16, "recurrent", "chunked"),
        ("gla", 256, "recurrent", "associative"),
        ("gla", 1024, "recurrent", "chunked"),
        ("deltanet", 1, "recurrent", "chunked"),
        ("deltanet", 64, "recurrent", "chunked"),
        ("gated_deltanet", 64, "chunked", "chunked"),
        ("gated_deltanet", 65, "recurrent", "chunked"),
        ("rwkv7", 1, "recurrent", "recurrent"),
        ("gated_delta_product", 1, "chunked", "chunked"),
        ("ttt_mlp", 1, "chunked", "chunked"),
        ("yaad", 1, "recurrent", "chunked"),
        ("yaad", 256, "chunked", "chunked"),
        ("lact", 1, "recurrent", "chunked"),
        ("longhorn", 256, "recurrent", "recurrent"),
        ("sliding_window_attention", 1, "chunked", "chunked"),
        ("transformer", 1, "recurrent", "recurrent"),
    ],
)
def test_on_a_cpu(name, total, values, derivatives):
    assert pure_forms(mj.zoo.get(name), total, "cpu") == (values, derivatives)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_on_an_accelerator_a_single_token_is_read_by_itself(platform):
    for name in ("yaad", "gla", "gated_delta_product", "transformer"):
        memory = mj.zoo.get(name)
        assert pure_forms(memory, 1, platform) == ("recurrent", "recurrent")
        assert pure_forms(memory, 2, platform) == ("chunked", "chunked")


MOMENTUM = Memory(bias=DotProduct(), algorithm=Momentum(), chunk_size=CHUNK)


def test_takes_forms_that_the_memory_has():
    memories = [*map(mj.zoo.get, mj.zoo.names()), MOMENTUM, Memory(read="chunk", gradient="exact")]
    for memory in memories:
        for total in (1, 16, 64, 65, 256, 1024, 4096):
            for platform in ("cpu", "gpu", "tpu"):
                assert set(pure_forms(memory, total, platform)) <= set(memory.forms)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["linear_attention", "gla", "deltanet", "momentum"])
def test_values_and_gradients_are_those_of_any_form(name):
    """One form for values and another for gradients: both agree with a third."""
    c = case(MOMENTUM if name == "momentum" else memory_of(name))

    def loss(form):
        return lambda inputs: jnp.sum(apply(c.memory, c.params, inputs, form=form)[0] ** 2)

    values, derivatives = pure_forms(c.memory, c.tokens, "cpu")
    assert values != derivatives
    for automatic, expected in zip(
        jax.value_and_grad(loss("auto"))(c.inputs),
        jax.value_and_grad(loss("recurrent"))(c.inputs),
        strict=True,
    ):
        for x, y in zip(jax.tree.leaves(automatic), jax.tree.leaves(expected), strict=True):
            close(x, y, rtol=1e-11, atol=1e-12)  # rounding of float64
