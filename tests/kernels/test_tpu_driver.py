"""The TPU driver computes what `scan_reference` computes, for a step of the test's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import tpu
from kernels_pallas.step import scan_reference
from tests.cases import close, cotangents, weigh

B, H, T, K, V, C = 2, 2, 64, 8, 16, 8


@dataclasses.dataclass(frozen=True)
class Decaying:
    """`S_t = rho_t S_{t-1} + live_t k_t^T v_t`, `y_t = q_t (S_t + bias)`."""

    def __call__(self, carry, consts, tokens, marks):
        start, bias = carry["memory"], consts["bias"]
        q, k, v = (tokens[name] for name in "qkv")
        length = q.shape[0]
        t = jax.lax.broadcasted_iota(jnp.int32, (length, length), 0)
        i = jax.lax.broadcasted_iota(jnp.int32, (length, length), 1)
        total = (i <= t).astype(q.dtype) @ tokens["log_decay"]
        decay = jnp.where(i <= t, jnp.exp(jnp.where(i <= t, total - total.T, 0.0)), 0.0)
        v = v * (marks["live"] > 0)
        y = jnp.exp(total) * (q @ start) + ((q @ k.T) * decay) @ v + q @ bias
        end = jnp.exp(total[-1:]) * start + (k * jnp.exp(total[-1:] - total)).T @ v
        return {"memory": end}, y


def inputs(total: int = T, dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / 3, jnp.float32)

    tokens = {
        name: normal(B, H, total, n).astype(dtype) for name, n in zip("qkv", (K, K, V), strict=True)
    }
    tokens["log_decay"] = -jnp.abs(normal(B, H, total, 1))
    marks = {"live": jnp.asarray(rng.integers(0, 2, (B, total)), jnp.int32)}
    return {"memory": normal(B, H, K, V)}, {"bias": normal(H, K, V)}, tokens, marks


def pulled(scan, carry, consts, tokens, marks, dtype=jnp.float32, **options):
    """Values, and the gradients of a weighed sum of them."""

    def run(carry, consts, tokens):
        out = scan(
            Decaying(), carry, consts, tokens, marks,
            chunk_size=C, value_dim=V, dtype=dtype, **options,
        )  # fmt: skip
        return weigh(out), out

    with jax.default_matmul_precision("highest"):
        (_, out), gradients = jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True)(
            carry, consts, tokens
        )
    return out, gradients


@pytest.mark.parametrize("group", [1, 2, 4])
def test_values_and_gradients(group):
    arguments = inputs()
    expected = pulled(scan_reference, *arguments)
    # float32 sums of 64 tokens in two orders.
    close(pulled(tpu.scan, *arguments, group=group, interpret=True), expected, rtol=2e-6)


def test_bfloat16_is_only_at_the_edge():
    arguments = inputs(dtype=jnp.bfloat16)
    expected = pulled(scan_reference, *arguments, dtype=jnp.bfloat16)
    found = pulled(tpu.scan, *arguments, dtype=jnp.bfloat16, group=2, interpret=True)
    wide = jnp.float32
    # Equal but for the last bit of bfloat16, 2^-8, where the float32 sums round apart.
    close(*(jax.tree.map(lambda x: x.astype(wide), tree) for tree in (found, expected)), rtol=8e-3)
    assert found[0][1].dtype == jnp.bfloat16
    assert found[1][2]["q"].dtype == jnp.bfloat16
    assert found[0][0]["memory"].dtype == jnp.float32


def test_no_race_no_stale_memory_no_block_outside():
    """The TPU's interpreter visits parallel axes in random order, fills scratch with NaN, refuses
    blocks outside an array and watches for races."""
    arguments = inputs(total=4 * C)
    interpret = pltpu.InterpretParams(detect_races=True)
    found = pulled(tpu.scan, *arguments, group=2, interpret=interpret)
    assert not interpret_pallas_call.races.races_found
    close(found, pulled(scan_reference, *arguments), rtol=2e-6)


def test_decode_is_one_token_in_place_and_differentiable():
    carry, consts, tokens, marks = inputs(total=1)
    options = {"value_dim": V, "dtype": jnp.float32}

    def fused(carry, consts, tokens):
        return tpu.decode(Decaying(), carry, consts, tokens, marks, interpret=True, **options)

    def plain(carry, consts, tokens):
        return scan_reference(Decaying(), carry, consts, tokens, marks, chunk_size=1, **options)

    with jax.default_matmul_precision("highest"):
        expected, pull = jax.vjp(plain, carry, consts, tokens)
        found, pull_fused = jax.vjp(fused, carry, consts, tokens)
        close(found, expected, rtol=1e-6)
        close(pull_fused(cotangents(found)), pull(cotangents(found)), rtol=1e-6)
        jaxpr = str(jax.make_jaxpr(fused)(carry, consts, tokens))
    assert "input_output_aliases=((0, 0),)" in jaxpr


def test_tokens_must_fill_the_groups():
    arguments = inputs(total=3 * C)
    with pytest.raises(ValueError, match="2 chunks of 8 tokens at a time, got 24"):
        pulled(tpu.scan, *arguments, group=2, interpret=True)
