"""First choice: what holds the memory.

An architecture is written once, against an injected `linear(name, x)`. Because every layer of a
memory is a linear map, the gradient of any loss with respect to a layer is a sum of outer products
`x_i d_i^T`, and the engine needs nothing but the inputs x and the cotangents d of each layer: it
injects one `linear` to write (multiply by the weights, tap the output) and another to read
(multiply by weights that differ from token to token).

Weights are `[inputs, outputs]` and vectors are rows: `linear(name, x) = x @ W`. A diagonal layer
has weights `[1, channels]` and `linear(name, x) = x * w`; with x = 1 it is a bias.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from miras_jax.memory.gate import Gate

Linear = Callable[[str, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One linear map of a memory: its size and the scale of its learned start.

    Attributes:
      inputs, outputs: the shape of its weights.
      std: standard deviation of the initial weights; None starts at zero and learns no start.
      reads_key: its inputs are the key's channels, so that gates per key channel act on them.
      writes_value: its outputs are the value's channels.
      mean: mean of the initial weights.
      kind: "dense" is `x @ W`; "diagonal" multiplies channel by channel, weights `[1, channels]`;
        "entries" gives every product `x_i w_ij`, `[C, inputs * outputs]`.
      frozen: a parameter of the model that the memory never writes.
    """

    inputs: int
    outputs: int
    std: float | None
    reads_key: bool = False
    writes_value: bool = False
    mean: float = 0.0
    kind: Literal["dense", "diagonal", "entries"] = "dense"
    frozen: bool = False

    @property
    def width(self) -> int:
        """Channels of what `apply` gives."""
        return self.inputs * self.outputs if self.kind == "entries" else self.outputs

    def apply(self, x: jax.Array, weights: jax.Array) -> jax.Array:
        """The map of x `[C, inputs]`, or `[C, outputs]` if diagonal, to `[C, width]`."""
        if self.kind == "dense":
            return x @ weights
        if self.kind == "diagonal":
            return x * weights
        return (x[:, :, None] * weights).reshape(x.shape[0], -1)

    def outer(self, u: jax.Array, d: jax.Array) -> jax.Array:
        """The sum over tokens of the outer products of u `[C, inputs]` and cotangents d."""
        if self.kind == "dense":
            return u.T @ d
        if self.kind == "diagonal":
            return jnp.sum(u * d, axis=0, keepdims=True)
        return jnp.einsum("ci,cij->ij", u, d.reshape(*u.shape, -1))

    def square(self, x: jax.Array) -> jax.Array:
        """Squared norm of the input that one output sees, `[C, 1]` or `[C, channels]`."""
        if self.kind == "dense":
            return jnp.sum(x * x, axis=-1, keepdims=True)
        return x * x


class Architecture:
    """What holds a memory.

    `linear` is True for linear maps of the key alone: with an affine bias each gradient can then be
    taken at its own token's memory.
    """

    linear = False

    @property
    def gates(self) -> dict[str, Gate]:
        return {}

    def layers(self, key_dim: int, value_dim: int) -> dict[str, Layer]:
        """The layers by name.

        Raises:
          ValueError: the architecture cannot have these widths.
        """
        raise NotImplementedError

    def apply(self, linear: Linear, x: jax.Array) -> jax.Array:
        """M(x) `[C, V]` for x `[C, K]`."""
        raise NotImplementedError

    def target(self, key: jax.Array, value: jax.Array) -> jax.Array:
        """What M(key) is to predict."""
        return value

    def read(self, linear: Linear, query: jax.Array, gates: Mapping) -> jax.Array:
        """What the memory answers to queries `[C, K]`."""
        return self.apply(linear, query)


@dataclasses.dataclass(frozen=True)
class Vector(Architecture):
    """`M(x) = w * x`, one number a channel. It starts at zero."""

    linear = True

    def layers(self, key_dim, value_dim):
        if key_dim != value_dim:
            raise ValueError(
                f"A vector memory works channel by channel: {key_dim=} must equal {value_dim=}."
            )
        layer = Layer(1, value_dim, None, reads_key=True, writes_value=True, kind="diagonal")
        return {"memory": layer}

    def apply(self, linear, x):
        return linear("memory", x)


@dataclasses.dataclass(frozen=True)
class Matrix(Architecture):
    """`M(x) = x W`, the fast-weight memory. It starts at zero."""

    linear = True

    def layers(self, key_dim, value_dim):
        return {"memory": Layer(key_dim, value_dim, None, reads_key=True, writes_value=True)}

    def apply(self, linear, x):
        return linear("memory", x)


@dataclasses.dataclass(frozen=True)
class Entries(Architecture):
    """K V entries that learn apart: entry (i, j) predicts v_j by `k_i w_ij`, and `y_j = sum_i q_i
    w_ij`. With l2 this is the delta rule with the diagonal of `k^T k` in its place, the form of
    Longhorn's published kernel (arXiv 2407.14207). It starts at zero."""

    linear = True

    def layers(self, key_dim, value_dim):
        layer = Layer(key_dim, value_dim, None, reads_key=True, writes_value=True, kind="entries")
        return {"memory": layer}

    def apply(self, linear, x):
        return linear("memory", x)

    def target(self, key, value):
        return jnp.tile(value, key.shape[-1])

    def read(self, linear, query, gates):
        return linear("memory", query).reshape(*query.shape, -1).sum(-2)


@dataclasses.dataclass(frozen=True)
class NormalEquations(Architecture):
    """Least squares over all that was read (MesaNet, arXiv 2506.05233, Eqs. 6-8).

    Two matrices are accumulated, `H = sum k^T k` ("keys") and `S = sum k^T v` ("memory"), each
    pair under the step and the decay; a read solves `(H + diag(ridge)) x = q` by conjugate
    gradients and answers `x S`. Its products `x H` are reads of the memory like any other. The
    derivative is that of the exact solution.

    Attributes:
      iterations: the most steps of conjugate gradients; K of them are exact but for rounding, and
        no more are taken than rounding lets matter.
    """

    iterations: int = 30

    linear = True

    def __post_init__(self):
        if self.iterations < 1:
            raise ValueError(f"NormalEquations needs iterations >= 1, got {self.iterations}.")

    @property
    def gates(self):
        return {"ridge": Gate("key", "softplus", initial=1.0, source="learned")}

    def layers(self, key_dim, value_dim):
        return {
            "keys": Layer(key_dim, key_dim, None, reads_key=True),
            "memory": Layer(key_dim, value_dim, None, reads_key=True, writes_value=True),
        }

    def apply(self, linear, x):
        return jnp.concatenate([linear("keys", x), linear("memory", x)], axis=-1)

    def target(self, key, value):
        return jnp.concatenate([key, value], axis=-1)

    def read(self, linear, query, gates):
        def product(x):
            return linear("keys", x) + gates["ridge"] * x

        def solve(product, b):
            return conjugate_gradients(product, b, self.iterations)

        x = jax.lax.custom_linear_solve(product, query, solve, symmetric=True)
        return linear("memory", x)


@dataclasses.dataclass(frozen=True)
class MLP(Architecture):
    """`M(x) = x + LN(W_k ... gelu(W_1 x))`, the deep memory of Moneta, Yaad and Memora (Miras
    section 5.3, two layers, expansion 4), of Titans (k layers) and of TTT (with biases).

    The first layer has unit variance: keys have unit norm, so 1/sqrt(inputs) would leave the
    LayerNorm almost nothing to divide by. Later layers have 1/sqrt(inputs).

    Attributes:
      depth: number of layers k, at least 1.
      expansion: hidden width over the key width.
      norm: LayerNorm of the last layer's output.
      residual: adds x; needs `key_dim == value_dim`.
      bias: every layer has a bias that the memory learns like its weights.
      scale: of the norm. "none"; "learned", a scale and a bias that are parameters of the model
        (TTT); "memory", a factor `1 + scale` that the memory learns.
      gelu: "tanh", the approximation; "erf", the exact one.
      eps: of the norm.
    """

    depth: int = 2
    expansion: int = 4
    norm: bool = True
    residual: bool = True
    bias: bool = False
    scale: Literal["none", "learned", "memory"] = "none"
    gelu: Literal["tanh", "erf"] = "tanh"
    eps: float = 1e-5

    def __post_init__(self):
        if self.depth < 1 or self.expansion < 1:
            raise ValueError(
                "MLP memory needs depth >= 1 and expansion >= 1, "
                f"got {self.depth=}, {self.expansion=}."
            )
        if self.scale not in ("none", "learned", "memory") or self.gelu not in ("tanh", "erf"):
            raise ValueError(
                "MLP memory needs scale none, learned or memory and gelu tanh or erf, "
                f"got {self.scale=}, {self.gelu=}."
            )
        if self.scale != "none" and not self.norm:
            raise ValueError(f"{self.scale=} scales the norm: choose norm=True or scale='none'.")

    @property
    def linear(self) -> bool:
        return self.depth == 1 and not (self.norm or self.residual or self.bias)

    def layers(self, key_dim, value_dim):
        _check_residual(self.residual, key_dim, value_dim)
        widths = [key_dim] + [self.expansion * key_dim] * (self.depth - 1) + [value_dim]
        layers = {}
        for i in range(self.depth):
            last = i == self.depth - 1
            std = 1.0 if i == 0 else widths[i] ** -0.5
            layers[f"layer_{i + 1}"] = Layer(
                widths[i], widths[i + 1], std, reads_key=i == 0, writes_value=last
            )
            if self.bias:
                layers[f"bias_{i + 1}"] = Layer(
                    1, widths[i + 1], 0.0, writes_value=last, kind="diagonal"
                )
        if self.scale == "memory":
            layers["norm_scale"] = Layer(1, value_dim, 0.0, writes_value=True, kind="diagonal")
        if self.scale == "learned":
            layers["norm_scale"] = Layer(1, value_dim, 0.0, mean=1.0, kind="diagonal", frozen=True)
            layers["norm_bias"] = Layer(1, value_dim, 0.0, kind="diagonal", frozen=True)
        return layers

    def apply(self, linear, x):
        h = x
        for i in range(1, self.depth + 1):
            if i > 1:
                h = jax.nn.gelu(h, approximate=self.gelu == "tanh")
            h = linear(f"layer_{i}", h)
            if self.bias:
                h += linear(f"bias_{i}", jnp.ones_like(h))
        if self.norm:
            h = layer_norm(h, self.eps)
        if self.scale == "memory":
            h += linear("norm_scale", h)
        if self.scale == "learned":
            h = linear("norm_scale", h) + linear("norm_bias", jnp.ones_like(h))
        return x + h if self.residual else h


@dataclasses.dataclass(frozen=True)
class SwiGLU(Architecture):
    """`M(x) = (silu(x W_gate) * (x W_up)) W_down`, the gated MLP of LaCT (arXiv 2505.23884) and,
    with a residual, of Atlas++ (arXiv 2505.23735).

    Attributes:
      expansion: hidden width over the key width.
      norm: LayerNorm of the output.
      residual: adds x; needs `key_dim == value_dim`.
    """

    expansion: int = 2
    norm: bool = False
    residual: bool = False

    def __post_init__(self):
        if self.expansion < 1:
            raise ValueError(f"SwiGLU memory needs expansion >= 1, got {self.expansion}.")

    def layers(self, key_dim, value_dim):
        _check_residual(self.residual, key_dim, value_dim)
        hidden = self.expansion * key_dim
        return {
            "gate": Layer(key_dim, hidden, 1.0, reads_key=True),
            "up": Layer(key_dim, hidden, 1.0, reads_key=True),
            "down": Layer(hidden, value_dim, hidden**-0.5, writes_value=True),
        }

    def apply(self, linear, x):
        y = linear("down", jax.nn.silu(linear("gate", x)) * linear("up", x))
        if self.norm:
            y = layer_norm(y)
        return x + y if self.residual else y


def _check_residual(residual: bool, key_dim: int, value_dim: int):
    if residual and key_dim != value_dim:
        raise ValueError(
            f"A residual memory adds its key to its value: {key_dim=} must equal {value_dim=}. "
            "Choose equal widths or residual=False."
        )


def layer_norm(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """Centres and scales the last axis to unit variance; no learned scale or bias."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)


def conjugate_gradients(
    product: Callable[[jax.Array], jax.Array], b: jax.Array, iterations: int
) -> jax.Array:
    """x with `product(x) = b`, a symmetric positive definite system for each row of b `[C, K]`."""

    def dot(a, b):
        return jnp.sum(a * b, axis=-1, keepdims=True)

    square = dot(b, b)
    enough = jnp.finfo(b.dtype).eps ** 2 * square  # a residual that rounding would leave

    def ratio(a, b, active):
        # A finished row stays as it is, whatever the other rows (later tokens) still need, and so
        # does one whose system is singular.
        active &= b > 0
        return jnp.where(active, a / jnp.where(active, b, 1.0), 0.0)

    def unfinished(carry):
        done, *_, square = carry
        return (done < iterations) & jnp.any(square > enough)

    def iterate(carry):
        done, x, residual, direction, square = carry
        active = square > enough
        moved = product(direction)
        length = ratio(square, dot(direction, moved), active)
        x, residual = x + length * direction, residual - length * moved
        after = dot(residual, residual)
        direction = residual + ratio(after, square, active) * direction
        return done + 1, x, residual, direction, after

    _, x, *_ = jax.lax.while_loop(unfinished, iterate, (0, jnp.zeros_like(b), b, b, square))
    return x
