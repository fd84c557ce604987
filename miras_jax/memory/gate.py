"""Gates: the data-dependent numbers that steer a memory, described for whoever produces them.

A memory never computes its own gates. It says which it needs (`Memory.gates`), with the
shape, the range, the activation and the initial value of each, and `memorize` receives their
values. A layer projects its input to logits and applies `Gate.activate`.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

Per = Literal["head", "key", "value"]
Activation = Literal["sigmoid", "softplus", "negative_softplus", "identity", "unit"]
Source = Literal["token", "learned"]


@dataclasses.dataclass(frozen=True)
class Gate:
    """One gate of a memory.

    Attributes:
      per: "head" for one number per head, values `[B, T, H]`; "key" for one per key channel,
        `[B, T, H, K]`; "value" for one per value channel, `[B, T, H, V]`.
      activation: map from a logit to the gate. "sigmoid" gives (0, high), "softplus" (0, inf),
        "negative_softplus" (-inf, 0), the range of a log decay. "identity" and "unit" are no gates
        but further inputs: a vector like a value, and one of unit norm like a key.
      initial: value at initialisation; a pair is spread geometrically over the heads, so that a
        layer starts with memories of different time scales, and one head starts at their geometric
        mean. Without meaning for further inputs.
      high: factor of the activation: the upper end of a sigmoid, the slope of a softplus.
      source: "token", computed from every token; "learned", a constant that training finds.

    Raises:
      ValueError: an unknown `per`, activation or source, or an initial value out of the range.
    """

    per: Per = "head"
    activation: Activation = "sigmoid"
    initial: float | tuple[float, float] = 0.5
    high: float = 1.0
    source: Source = "token"

    def __post_init__(self):
        if self.per not in get_args(Per) or self.activation not in get_args(Activation):
            raise ValueError(
                f"A gate is per {' or '.join(get_args(Per))}, with activation "
                f"{' or '.join(get_args(Activation))}; got {self.per!r} and {self.activation!r}."
            )
        if self.source not in get_args(Source):
            raise ValueError(f"A gate's source is token or learned, got {self.source!r}.")
        low, high = self.range
        if not self.is_input and not all(low < value < high for value in np.ravel(self.initial)):
            raise ValueError(f"initial must be inside ({low}, {high}), got {self.initial}.")

    @property
    def is_input(self) -> bool:
        """True for a further input of the memory, which nothing squashes."""
        return self.activation in ("identity", "unit")

    @property
    def range(self) -> tuple[float, float]:
        """The open interval in which `activate` takes its values."""
        ranges = {
            "sigmoid": (0.0, self.high),
            "softplus": (0.0, np.inf),
            "negative_softplus": (-np.inf, 0.0),
            "identity": (-np.inf, np.inf),
            "unit": (-1.0, 1.0),
        }
        return ranges[self.activation]

    def activate(self, logits: jax.Array) -> jax.Array:
        """Values of the gate in the dtype of `logits`: elementwise, but for "unit", which divides
        by the norm of the last axis."""
        if self.activation == "identity":
            return logits
        if self.activation == "unit":
            return unit(logits)
        if self.activation == "sigmoid":
            return self.high * jax.nn.sigmoid(logits)
        sign = -1.0 if self.activation == "negative_softplus" else 1.0
        return sign * self.high * jax.nn.softplus(logits)

    def initial_logits(self, count: int) -> np.ndarray:
        """Logits `[count]` at which the gate starts at `initial`, for a layer's bias; zeros for a
        further input."""
        if self.is_input:
            return np.zeros(count)
        ends = np.broadcast_to(np.asarray(self.initial, np.float64), (2,))
        value = np.geomspace(*ends, count)
        if count == 1:  # geomspace would give the first end
            value = np.copysign(np.sqrt(ends.prod(keepdims=True)), ends[0])
        if self.activation == "sigmoid":
            return np.log(value / (self.high - value))
        x = np.abs(value) / self.high
        return x + np.log(-np.expm1(-x))  # the inverse of softplus, for large values too

    def shape(self, tokens: tuple[int, ...], key_dim: int, value_dim: int) -> tuple[int, ...]:
        """Shape of the gate's values for tokens of shape `[B, T, H]`."""
        return tokens + {"head": (), "key": (key_dim,), "value": (value_dim,)}[self.per]


def unit(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x over its l2 norm along the last axis, in float32 inside at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + eps)).astype(x.dtype)


def log_decay(
    per: Per = "head", initial: float | tuple[float, float] = (-0.001, -0.1), high: float = 1.0
) -> Gate:
    """A forgetting gate in natural-log space, values <= 0. Initial values span time scales of
    1,000 to 10 tokens over the heads."""
    return Gate(per=per, activation="negative_softplus", initial=initial, high=high)
