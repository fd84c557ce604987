"""The small layers: causal convolution, rotary positions, gates, SwiGLU."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from miras_jax.memory import Gate
from miras_jax.nn import partition


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, dtype: jnp.dtype, scale: float = 1.0):
    """A projection without bias: float32 kernel `[inputs, outputs]` of variance scale^2 / inputs,
    computed in `dtype`."""
    init = nnx.initializers.variance_scaling(scale**2, "fan_in", "normal")
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)


class ShortConvolution(nnx.Module):
    """Depthwise causal convolution over the last `width` tokens, then SiLU."""

    def __init__(self, channels: int, *, width: int = 4, rngs: nnx.Rngs):
        self.width = width
        bound = width**-0.5
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (width, channels), minval=-bound, maxval=bound)
        )

    def __call__(
        self, x: jax.Array, before: jax.Array | None, document: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Convolves x `[B, T, channels]`.

        Args:
          x: the tokens.
          before: the `width - 1` inputs before them `[B, width - 1, channels]`; None for zeros.
          document: int `[B, T]`, counted up from 0, the document of `before`; a token sees only
            its own document. None is one document.

        Returns:
          the output `[B, T, channels]` and the inputs that the next call needs before its own.
        """
        batch, total, channels = x.shape
        past = self.width - 1
        if before is None:
            before = jnp.zeros((batch, past, channels), x.dtype)
        kernel = self.kernel[...].astype(x.dtype)
        padded = jnp.concatenate([before.astype(x.dtype), x], axis=1)
        if document is not None:
            document = jnp.pad(document, ((0, 0), (past, 0)))
        y = jnp.zeros_like(x)
        for lag in range(self.width):
            seen = padded[:, past - lag : past - lag + total]
            if document is not None:
                theirs = document[:, past - lag : past - lag + total]
                seen = jnp.where((theirs == document[:, past:])[..., None], seen, 0)
            y += seen * kernel[past - lag]
        after = padded[:, total:]
        if document is not None:
            after = jnp.where((document[:, total:] == document[:, -1:])[..., None], after, 0)
        return jax.nn.silu(y), after


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary positions (Su et al., arXiv 2104.09864): turns each pair (i, i + K/2) of x
    `[B, T, H, K]` by `positions [B, T]` times base^(-2i/K)."""
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def unit(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x over its l2 norm along the last axis, in float32 inside."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.sum(x32 * x32, -1, keepdims=True) + eps)).astype(x.dtype)


class GateProjection(nnx.Module):
    """The logits of one gate, in float32: linear per head, through a low rank per channel.

    The last kernel starts at zero, so that every gate starts at its initial value.
    """

    def __init__(self, gate: Gate, dim: int, heads: int, channels: int, rank: int, rngs: nnx.Rngs):
        self.gate, self.heads = gate, heads
        count = 1 if gate.per == "head" else channels
        if gate.per != "head":
            self.reduce = linear(dim, rank, rngs, jnp.float32)
        inputs = dim if gate.per == "head" else rank
        self.expand = nnx.Linear(
            inputs, heads * count, kernel_init=nnx.initializers.zeros, dtype=jnp.float32, rngs=rngs
        )
        self.expand.bias[...] = jnp.repeat(
            jnp.asarray(gate.initial_logits(heads), jnp.float32), count
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Values `[B, T, H]` or `[B, T, H, channels]` for x `[B, T, dim]`."""
        x = x.astype(jnp.float32)
        if self.gate.per == "head":
            return self.gate.activate(self.expand(x))
        logits = self.expand(self.reduce(x))
        return self.gate.activate(logits.reshape(*x.shape[:2], self.heads, -1))


def gate_projections(
    gates: Mapping[str, Gate], dim: int, heads: int, channels: int, rank: int, rngs: nnx.Rngs
) -> nnx.Dict:
    """A projection for each gate that a memory needs."""
    return nnx.Dict(
        {name: GateProjection(g, dim, heads, channels, rank, rngs) for name, g in gates.items()}
    )


class SwiGLU(nnx.Module):
    """`down(silu(gate_up(x)) * up(x))` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, *, depth: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.gate_up = linear(dim, hidden, rngs, dtype)
        self.up = linear(dim, hidden, rngs, dtype)
        self.down = linear(hidden, dim, rngs, dtype, scale=(2 * depth) ** -0.5)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jax.nn.silu(self.gate_up(x)) * self.up(x)
        return self.down(partition.constrain(hidden, partition.BATCH, None, "tensor"))
