"""First choice: what holds the memory.

An architecture is written once, against an injected `linear(name, x)`. Because every layer of a
memory is a linear map, the gradient of any loss with respect to a layer is a sum of outer products
`x_i d_i^T`, and the engine needs nothing but the inputs x and the cotangents d of each layer: it
injects one `linear` to write (multiply by the weights, tap the output) and another to read
(multiply by weights that differ from token to token).

Weights are `[inputs, outputs]` and vectors are rows: `linear(name, x) = x @ W`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

Linear = Callable[[str, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One linear map of a memory: its size and the scale of its learned start.

    Attributes:
      inputs, outputs: the shape of its weights.
      std: standard deviation of the initial weights; None starts at zero and learns no start.
      reads_key: its inputs are the key's channels, so that gates per key channel act on them.
      writes_value: its outputs are the value's channels.
    """

    inputs: int
    outputs: int
    std: float | None
    reads_key: bool
    writes_value: bool


@dataclasses.dataclass(frozen=True)
class Matrix:
    """`M(x) = x W`, the fast-weight memory. It starts at zero."""

    linear = True

    def layers(self, key_dim: int, value_dim: int) -> dict[str, Layer]:
        return {"memory": Layer(key_dim, value_dim, None, reads_key=True, writes_value=True)}

    def apply(self, linear: Linear, x: jax.Array) -> jax.Array:
        return linear("memory", x)


@dataclasses.dataclass(frozen=True)
class MLP:
    """`M(x) = x + LN(W_k ... gelu(W_1 x))`, the deep memory of Moneta, Yaad and Memora (Miras
    section 5.3, two layers, expansion 4) and of Titans (k layers).

    The first layer has unit variance: keys have unit norm, so 1/sqrt(inputs) would leave the
    LayerNorm almost nothing to divide by. Later layers have 1/sqrt(inputs).

    Attributes:
      depth: number of layers k, at least 1.
      expansion: hidden width over the key width.
      norm: LayerNorm (without scale and bias) of the last layer's output.
      residual: adds x; needs `key_dim == value_dim`.
    """

    depth: int = 2
    expansion: int = 4
    norm: bool = True
    residual: bool = True

    def __post_init__(self):
        if self.depth < 1 or self.expansion < 1:
            raise ValueError(
                "MLP memory needs depth >= 1 and expansion >= 1, "
                f"got {self.depth=}, {self.expansion=}."
            )

    @property
    def linear(self) -> bool:
        """True if the memory is one linear map, whose delta rule has an exact chunked form."""
        return self.depth == 1 and not self.norm and not self.residual

    def layers(self, key_dim: int, value_dim: int) -> dict[str, Layer]:
        if self.residual and key_dim != value_dim:
            raise ValueError(
                f"A residual MLP memory adds its key to its value: {key_dim=} must equal "
                f"{value_dim=}. Choose equal widths or MLP(residual=False)."
            )
        widths = [key_dim] + [self.expansion * key_dim] * (self.depth - 1) + [value_dim]
        return {
            f"layer_{i + 1}": Layer(
                inputs=widths[i],
                outputs=widths[i + 1],
                std=1.0 if i == 0 else widths[i] ** -0.5,
                reads_key=i == 0,
                writes_value=i == self.depth - 1,
            )
            for i in range(self.depth)
        }

    def apply(self, linear: Linear, x: jax.Array) -> jax.Array:
        h = linear("layer_1", x)
        for i in range(2, self.depth + 1):
            h = linear(f"layer_{i}", jax.nn.gelu(h))
        if self.norm:
            h = layer_norm(h)
        return x + h if self.residual else h


Architecture = Matrix | MLP


def layer_norm(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """Centres and scales the last axis to unit variance; no learned scale or bias."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
