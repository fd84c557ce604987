"""Retention gates with a link, or a projection at the chunk's end, of their own.

A link makes weights of the accumulator, `W = link(A)`; a projection replaces the accumulator of an
identity link at the end of each chunk (with a chunk of one token: after every token, which has read
by then unless `read="commit"`).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from miras_jax.memory.retention import Retention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lq(Retention):
    """lq retention (Miras Eq. 24, Moneta).

    Norms are power means, `|A|_q = mean(|A|^q)^(1/q)` over a layer: the constant that separates
    them from sums would otherwise shrink a large layer a hundredfold.

    Attributes:
      q: exponent of the norm, > 1; 2 is l2.
      form: "norm" is the printed link made dimensionless, `A (|A_0|_q / |A|_q)^(q - 2)`, so that
        W_0 = A_0 (as printed, `A / |A|_q^(q-2)` has degree 2 - q + 1 and is singular at 0).
        "dual" is the link that the regulariser implies, `sign(A) |A|^(q-1) / |A|_q^(q-2)`; it is
        no multiple of A, so memories with it read the start of the chunk.
      eps: smooths the norms at zero.
    """

    q: float = 4.0
    form: Literal["norm", "dual"] = "norm"
    eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        if self.q <= 1:
            raise ValueError(f"lq retention needs q > 1, got {self.q}.")
        if self.form not in ("norm", "dual"):
            raise ValueError(f"lq form must be 'norm' or 'dual', got {self.form!r}.")

    identity = False

    @property
    def scalar_link(self):
        return self.form == "norm"

    @property
    def needs_start(self):
        return self.form == "norm"

    def norm(self, a: jax.Array) -> jax.Array:
        power = (a * a + self.eps) ** (self.q / 2)
        return jnp.mean(power, axis=(-2, -1), keepdims=True) ** (1 / self.q)

    def factor(self, a, a0):
        return (self.norm(a0) / self.norm(a)) ** (self.q - 2)

    def link(self, a, a0, layer):
        if self.form == "norm":
            return super().link(a, a0, layer)
        return a * ((a * a + self.eps) ** 0.5 / self.norm(a)) ** (self.q - 2)

    def initial_std(self, layer):
        """For the dual link of a normal A_0 of deviation s, W has s sqrt(m(2q - 2)) / scale."""
        if self.form == "norm":
            return layer.std
        return layer.std * self._scale / math.sqrt(_moment(2 * self.q - 2))

    def gain(self, layer):
        return 1.0 if self.form == "norm" else (self.q - 1) * _moment(self.q - 2) / self._scale

    @property
    def _scale(self) -> float:
        return _moment(self.q) ** ((self.q - 2) / self.q)


def _moment(p: float) -> float:
    """E |z|^p of a standard normal z."""
    return 2 ** (p / 2) * math.gamma((p + 1) / 2) / math.sqrt(math.pi)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KL(Retention):
    """KL and Shannon retention (Miras Eqs. 19-21 and 27, Memora): `W = c softmax(A)`.

    The softmax runs over the inputs of each output. With logits as the state the printed
    `Softmax(alpha log W - eta g)` is exact without a lag token, because softmax ignores the
    constant that the logarithm drops, as long as the decay is constant along its axis: a decay
    per key channel is refused.

    Inside a chunk W is linear in A, `W_t = link(A_s) + c / n (A_t - A_s)` less the mean over the n
    inputs (signed: with that mean), A_s at the chunk's start; the softmax is taken again at the
    chunk's end (Miras section 5.4).

    Attributes:
      scale: c is `scale * std * inputs` with the layer's own standard deviation, so that a layer
        of near uniform logits has entries of that size.
      signed: W = c sinh(A) / sum cosh(A), the difference of two positive halves (EG+-), whose
        entries take either sign.
    """

    scale: float = 1.0
    signed: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.decay is not None and self.decay.per == "key":
            raise ValueError(
                "KL retention needs a decay that is constant along the softmax axis (the inputs of "
                "each output): choose a decay per head or per value channel, not per key channel."
            )

    identity = False
    over_inputs = True
    scalar_link = False
    tangent = True

    def slope(self, x, layer):
        if not self.signed:
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        return self.gain(layer) * x

    def link(self, a, a0, layer):
        c = self.gain(layer) * layer.inputs
        if not self.signed:
            return c * jax.nn.softmax(a, axis=-2)
        # sinh and cosh of A share one shift, the largest |A| of each column, so none overflows.
        top = jnp.max(jnp.abs(a), axis=-2, keepdims=True)
        top = jax.lax.stop_gradient(top)
        plus, minus = jnp.exp(a - top), jnp.exp(-a - top)
        return c * (plus - minus) / jnp.sum(plus + minus, axis=-2, keepdims=True)

    def start(self, parameter, layer):
        return _logits(parameter, layer)

    def gain(self, layer):
        return self.scale * (layer.std or 1.0)


def _logits(parameter, layer):
    """Logits of unit size from a parameter of the size of the weights: a change of it changes them
    about as much as it would without a link, so that one learning rate suits all."""
    return parameter / (layer.std or 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FDivergence(Retention):
    """Retention by the f-divergence `sum W' f(W / W')` on positive weights of constant mass (Miras
    Eq. 18): `W_t = W_{t-1} g(-zeta_t - eta_t grad)`, `g = (f')^{-1}`, where zeta keeps the mass of
    every output's inputs. Applied once a chunk, to the chunk's sum of gradients.

    Attributes:
      inverse: g, elementwise, non-decreasing, `g(0) = 1`, not below 0.
      scale: the mass of an output is `scale * std * inputs`, as for KL.
    """

    inverse: Callable[[jax.Array], jax.Array]
    scale: float = 1.0

    commits = True
    over_inputs = True
    scalar_link = False  # between two chunk ends the accumulator is no memory

    def __post_init__(self):
        super().__post_init__()
        if self.decay is not None or self.value_decay is not None:
            raise ValueError(
                "An f-divergence keeps the mass of the weights, so they cannot decay: choose "
                "decay=None, or KL, which has a decay."
            )
        ends = np.asarray(self.inverse(jnp.asarray([-1.0, 0.0, 1.0])))
        if not (np.isclose(ends[1], 1.0, atol=1e-6) and 0 <= ends[0] <= ends[1] <= ends[2]):
            raise ValueError(
                "The inverse of f' must be non-negative, non-decreasing and 1 at 0, got "
                f"{ends.tolist()} at -1, 0 and 1."
            )

    def start(self, parameter, layer):
        return self.gain(layer) * layer.inputs * jax.nn.softmax(_logits(parameter, layer), axis=-2)

    def gain(self, layer):
        return self.scale * (layer.std or 1.0)

    def commit(self, a, start, a0, layer):
        moved, mass = a - start, jnp.sum(start, axis=-2, keepdims=True)

        def excess(zeta):
            return jnp.sum(start * self.inverse(moved - zeta), axis=-2, keepdims=True) - mass

        # The mass falls with zeta; it is too large at the smallest move and too small at the
        # largest. Bisection finds zeta, a Newton step gives it its derivative.
        low, high = (f(moved, axis=-2, keepdims=True) for f in (jnp.min, jnp.max))

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            heavy = excess(middle) > 0
            return jnp.where(heavy, middle, low), jnp.where(heavy, high, middle)

        rounds = 2 + jnp.finfo(a.dtype).nmant
        fixed = jax.lax.stop_gradient
        low, high = jax.lax.fori_loop(0, rounds, halve, (fixed(low), fixed(high)))
        zeta = fixed((low + high) / 2)
        value, slope = jax.jvp(excess, (zeta,), (jnp.ones_like(zeta),))
        slope = fixed(slope)
        zeta = zeta - value / jnp.where(slope < 0, slope, -1.0)
        return start * self.inverse(moved - zeta)


def ChiSquared(scale: float = 1.0) -> FDivergence:
    """`f(t) = (t - 1)^2 / 2`: relative steps of first order, cut at zero, where an entry stays."""
    return FDivergence(inverse=_one_plus, scale=scale)


def KLDivergence(scale: float = 1.0) -> FDivergence:
    """`f(t) = t log t - t + 1`: exponentiated gradient, which `KL` has in closed form."""
    return FDivergence(inverse=jnp.exp, scale=scale)


def _one_plus(x):
    return jnp.maximum(1 + x, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElasticNet(Retention):
    """l1 and l2 retention: small weights are forgotten altogether.

    Attributes:
      threshold: gamma >= 0, in units of the weights.
      form: "link" thresholds what is read, `W = S(A)` (FTRL, Miras Eq. 23); "proximal" thresholds
        the memory itself at every chunk's end, `A <- S(A)` (learning-retaining, Eq. 22).
      kind: S. "soft", `sign(z) max(|z| - gamma, 0)`, the exact one; "hard" keeps or drops whole
        entries; "smooth", `z |atan(z / gamma)| 2 / pi`, the paper's differentiable surrogate,
        which never reaches zero and shrinks large entries by `2 gamma / pi` only.
    """

    threshold: float = 0.01
    form: Literal["link", "proximal"] = "link"
    kind: Literal["soft", "hard", "smooth"] = "soft"

    def __post_init__(self):
        super().__post_init__()
        if not self.threshold >= 0:
            raise ValueError(f"The elastic net needs a threshold >= 0, got {self.threshold}.")
        if self.form not in ("link", "proximal") or self.kind not in ("soft", "hard", "smooth"):
            raise ValueError(
                "The elastic net needs form link or proximal and kind soft, hard or smooth, got "
                f"{self.form!r} and {self.kind!r}."
            )

    @property
    def identity(self):
        return self.form == "proximal"

    @property
    def commits(self):
        return self.form == "proximal"

    @property
    def scalar_link(self):
        return self.form == "proximal"

    def shrink(self, z: jax.Array) -> jax.Array:
        """S, elementwise."""
        if self.threshold == 0:
            return z
        size = jnp.abs(z)
        if self.kind == "hard":
            return jnp.where(size > self.threshold, z, 0.0)
        if self.kind == "soft":
            return jnp.sign(z) * jnp.maximum(size - self.threshold, 0.0)
        return z * jnp.abs(jnp.arctan(z / self.threshold)) * (2 / math.pi)

    def link(self, a, a0, layer):
        return self.shrink(a) if self.form == "link" else a

    def commit(self, a, start, a0, layer):
        return self.shrink(a) if self.form == "proximal" else a


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bregman(Retention):
    """Mirror descent, `W_t = (F')^{-1}(F'(W_{t-1}) - eta_t grad)` (Miras section 4, variant 5); the
    accumulator is F'(W).

    Attributes:
      mirror: F', elementwise and increasing.
      inverse: its inverse, from all reals to the range of the weights.
    """

    mirror: Callable[[jax.Array], jax.Array]
    inverse: Callable[[jax.Array], jax.Array]

    identity = False
    scalar_link = False

    def __post_init__(self):
        super().__post_init__()
        dual = jnp.linspace(-2.0, 2.0, 9)
        returned = np.asarray(self.mirror(self.inverse(dual)))
        if not np.allclose(returned, dual, atol=1e-4):
            raise ValueError(
                f"mirror and inverse must undo each other: mirror(inverse(x)) at {dual.tolist()} "
                f"is {returned.tolist()}."
            )

    def link(self, a, a0, layer):
        return self.inverse(a)


def Logit(**options) -> Bregman:
    """Weights in (0, 1): `F' = logit` (the paper's instance, `W_t = sigmoid(logit(W_{t-1}) - eta
    grad)`); takes the fields of `Retention`."""
    return Bregman(mirror=jax.scipy.special.logit, inverse=jax.nn.sigmoid, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sphere(Retention):
    """Every output's weights keep the norm they started with (LaCT, arXiv 2505.23884).

    Attributes:
      form: "project" rescales the memory itself at every chunk's end; "link" lets the accumulator
        grow and rescales what is read (LaCT's pre-norm).
      eps: added to the norm that is divided by.
    """

    form: Literal["project", "link"] = "project"
    eps: float = 1e-5

    over_inputs = True
    needs_start = True

    def __post_init__(self):
        super().__post_init__()
        if self.form not in ("project", "link"):
            raise ValueError(f"The sphere's form is 'project' or 'link', got {self.form!r}.")

    @property
    def identity(self):
        return self.form == "project"

    @property
    def commits(self):
        return self.form == "project"

    def norm(self, a: jax.Array) -> jax.Array:
        # The smallest normal float32 is 1e-38: this keeps the derivative finite at zero.
        return jnp.sqrt(jnp.sum(a * a, axis=-2, keepdims=True) + 1e-30)

    def factor(self, a, a0):
        if self.form == "project":
            return super().factor(a, a0)
        return self.norm(a0) / (self.norm(a) + self.eps)

    def commit(self, a, start, a0, layer):
        if self.form == "link":
            return a
        return a * self.norm(a0) / (self.norm(a) + self.eps)
