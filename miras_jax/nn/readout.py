"""A whole row told from its last token: the decoder of MAD's compression (arXiv 2403.17844)."""

import jax
import jax.numpy as jnp
from flax import nnx

from miras_jax.nn import partition
from miras_jax.nn.layers import linear


class RowReadout(nnx.Module):
    """The last token's vector with a sinusoidal code of each place, through an MLP of its width."""

    def __init__(self, dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.up = linear(dim, dim, rngs, dtype)
        self.down = linear(dim, dim, rngs, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Vectors `[B, T, dim]` to predict the T tokens of a row from, of x `[B, T, dim]`; only
        x's last token counts."""
        places = sinusoids(x.shape[1], x.shape[2]).astype(x.dtype)
        hidden = jax.nn.gelu(self.up(x[:, -1:] + places))
        return self.down(partition.constrain(hidden, partition.BATCH, None, "tensor"))


def sinusoids(length: int, dim: int) -> jax.Array:
    """Codes float32 `[length, dim]` of the places 0 .. length - 1: sines, then cosines (Vaswani et
    al., arXiv 1706.03762)."""
    half = -(-dim // 2)
    angle = jnp.arange(length)[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)[:, :dim]
