"""Second choice, the attentional bias: what the memory tries to get right.

A bias gives the gradient of its loss with respect to the memory's prediction, `g = dl/dpred`, of
residual `r = pred - v`. The engine carries g through the architecture; a matrix memory then
receives `k^T g`. Losses are scaled so that `g = r` wherever a bias agrees with l2 (Miras section
2.1 leaves the factors 1/2 and p open; here they belong to the step size).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from miras_jax.memory.gate import Gate


class Bias:
    """An attentional bias.

    `curvature` is c where the gradient is affine in the prediction, `g = c pred - v`, which gives
    a linear memory an exact chunked form; None where it is not.
    """

    curvature: float | None = None

    @property
    def gates(self) -> dict[str, Gate]:
        return {}

    def loss(self, prediction: jax.Array, value: jax.Array, gates: Mapping) -> jax.Array:
        """l `[...]` for prediction and value `[..., V]`, gates `[...]`."""
        raise NotImplementedError

    def gradient(self, prediction: jax.Array, value: jax.Array, gates: Mapping) -> jax.Array:
        """dl/dpred `[..., V]`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class DotProduct(Bias):
    """`l = -<pred, v>`, Hebbian learning (Miras Eq. 8)."""

    curvature = 0.0

    def loss(self, prediction, value, gates):
        return -jnp.sum(prediction * value, axis=-1)

    def gradient(self, prediction, value, gates):
        return -value


@dataclasses.dataclass(frozen=True)
class L2(Bias):
    """`l = |r|^2 / 2`, the delta rule (Miras Eq. 9)."""

    curvature = 1.0

    def loss(self, prediction, value, gates):
        return jnp.sum((prediction - value) ** 2, axis=-1) / 2

    def gradient(self, prediction, value, gates):
        return prediction - value


@dataclasses.dataclass(frozen=True)
class Lp(Bias):
    """`l = |r|_p^p / p` (Miras Eqs. 10-11), smooth at zero.

    Attributes:
      p: exponent >= 1. p = 2 is l2, p = 1 the value-less memory of Eq. 12.
      eps: the smooth absolute value is `sqrt(r^2 + eps)` (Remark 5).
      sharpness: None takes the exact gradient of the smooth loss, `r (r^2 + eps)^((p - 2) / 2)`.
        A number a takes the paper's separate smooth sign, `tanh(a r) (r^2 + eps)^((p - 1) / 2)`,
        for which the paper gives no value of a.
    """

    p: float = 3.0
    eps: float = 1e-6
    sharpness: float | None = None

    def __post_init__(self):
        if self.p < 1:
            raise ValueError(f"The lp bias needs p >= 1, got {self.p}.")

    def loss(self, prediction, value, gates):
        r = prediction - value
        return jnp.sum((r * r + self.eps) ** (self.p / 2), axis=-1) / self.p

    def gradient(self, prediction, value, gates):
        r = prediction - value
        square = r * r + self.eps
        if self.sharpness is None:
            return r * square ** ((self.p - 2) / 2)
        return jnp.tanh(self.sharpness * r) * square ** ((self.p - 1) / 2)


def L1(eps: float = 1e-6, sharpness: float | None = None) -> Lp:
    """`l = |r|_1`: writes a smooth sign per channel ("value-less", Miras Eq. 12)."""
    return Lp(p=1.0, eps=eps, sharpness=sharpness)


@dataclasses.dataclass(frozen=True)
class Huber(Bias):
    """l2 for small residuals, l1 for large ones: robust to outliers (Miras Eqs. 13-16).

    A large threshold gives l2, a small one the direction (or sign) alone.

    Attributes:
      kind: "coordinate" clips every channel of r to the threshold (Eqs. 13-14). "norm" clips the
        norm of r, per-token gradient clipping (Eq. 15). "switch" takes r below the threshold on
        |r| and `threshold * sign(r)` above it, as Yaad is printed (Eq. 16); it jumps by sqrt(V)
        at the threshold.
      threshold: delta > 0; a number, or a gate for an input-dependent one.
      eps: smooths the norm and the sign at zero.
      relative: delta times sqrt(V) is what the norm is held against, so that it is of the root mean
        square of r and means the same at every width V.
    """

    kind: Literal["coordinate", "norm", "switch"] = "norm"
    threshold: Gate | float = Gate(activation="softplus", initial=1.0)
    eps: float = 1e-6
    relative: bool = False

    def __post_init__(self):
        if self.kind not in ("coordinate", "norm", "switch"):
            raise ValueError(f"Huber kind must be coordinate, norm or switch, got {self.kind!r}.")
        if isinstance(self.threshold, Gate):
            if self.threshold.per != "head":
                raise ValueError(f"Huber's threshold is per head, got per={self.threshold.per!r}.")
        elif not self.threshold > 0:
            raise ValueError(f"Huber's threshold must be above 0, got {self.threshold}.")
        if self.relative and self.kind == "coordinate":
            raise ValueError("A coordinate has no width to be relative to: choose relative=False.")

    @property
    def gates(self):
        return {"threshold": self.threshold} if isinstance(self.threshold, Gate) else {}

    def _threshold(self, r, gates):
        delta = gates["threshold"][..., None] if self.gates else self.threshold
        return delta * r.shape[-1] ** 0.5 if self.relative else delta

    def loss(self, prediction, value, gates):
        """The switch has no loss of which it is the gradient; its l2 and l1 halves are given."""
        r = prediction - value
        delta = self._threshold(r, gates)
        if self.kind == "coordinate":
            size = jnp.abs(r)
        else:
            size = jnp.sqrt(jnp.sum(r * r, axis=-1, keepdims=True) + self.eps)
        clipped = jnp.minimum(size, delta)  # finite for an infinite threshold too
        loss = clipped * (size - clipped / 2)
        if self.kind == "switch":
            l1 = jnp.sum(jnp.sqrt(r * r + self.eps), axis=-1, keepdims=True)
            loss = jnp.where(size <= delta, loss, clipped * l1)
        return jnp.sum(loss, axis=-1)

    def gradient(self, prediction, value, gates):
        r = prediction - value
        delta = self._threshold(r, gates)
        if self.kind == "coordinate":
            return jnp.clip(r, -delta, delta)
        norm = jnp.sqrt(jnp.sum(r * r, axis=-1, keepdims=True) + self.eps)
        if self.kind == "norm":
            return r * (jnp.minimum(delta, norm) / norm)  # finite for an infinite threshold too
        sign = r * jax.lax.rsqrt(r * r + self.eps)
        return jnp.where(norm <= delta, r, jnp.minimum(delta, norm) * sign)


@dataclasses.dataclass(frozen=True)
class Robust(Bias):
    """l2 at the worst of all values within a radius of the given one: `max_{|e| <= Delta} |pred -
    (v + e)|^2 / 2 = (|r| + Delta)^2 / 2` (Miras Eq. 17).

    Attributes:
      radius: Delta >= 0; a number, or a gate for a learned or input-dependent one.
      eps: smooths the norm at zero.
    """

    radius: Gate | float = Gate(activation="softplus", initial=0.1, source="learned")
    eps: float = 1e-6

    def __post_init__(self):
        if isinstance(self.radius, Gate):
            if self.radius.per != "head":
                raise ValueError(f"Robust's radius is per head, got per={self.radius.per!r}.")
        elif not self.radius >= 0:
            raise ValueError(f"Robust's radius must be at least 0, got {self.radius}.")

    @property
    def gates(self):
        return {"radius": self.radius} if isinstance(self.radius, Gate) else {}

    def _norm_and_radius(self, r, gates):
        norm = jnp.sqrt(jnp.sum(r * r, axis=-1, keepdims=True) + self.eps)
        return norm, gates["radius"][..., None] if self.gates else self.radius

    def loss(self, prediction, value, gates):
        norm, radius = self._norm_and_radius(prediction - value, gates)
        return ((norm + radius) ** 2)[..., 0] / 2

    def gradient(self, prediction, value, gates):
        r = prediction - value
        norm, radius = self._norm_and_radius(r, gates)
        return r * (1 + radius / norm)
