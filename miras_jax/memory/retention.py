"""Third choice, the retention gate: how the memory holds on to the past.

State lives in the dual. The engine carries an accumulator A and a retention gate says two things:
how A decays, and which weights it stands for,

    A_t = anchor + rho_t (A_{t-1} - anchor) - eta_t g_t          W_t = link(A_t).

`rho = exp(log_decay)`. A and W are `[..., inputs, outputs]`, one head or many.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from miras_jax.memory import gate
from miras_jax.memory.architecture import Layer
from miras_jax.memory.gate import Gate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """Decay of the accumulator; the identity link.

    Attributes:
      decay: gate of the log decay, per head, key channel or value channel; None keeps everything.
        A layer of the memory without that channel axis decays by the channels' geometric mean.
      anchor: what A decays to. "initial", the learned initial memory, is the choice for deep
        memories: at "zero" the weights of an MLP vanish and its LayerNorm divides by almost
        nothing (outer gradients of 1e6 and more). For a matrix that starts at zero both agree.
      decay_first: the residual is measured against the decayed memory (Gated DeltaNet and its
        kin) instead of the one before the decay (Titans, Miras). Only the exact delta rule has
        the choice; elsewhere gradients are taken at the start of the chunk.
    """

    decay: Gate | None = None
    anchor: Literal["zero", "initial"] = "initial"
    decay_first: bool = False

    def __post_init__(self):
        if self.anchor not in ("zero", "initial"):
            raise ValueError(f"anchor must be 'zero' or 'initial', got {self.anchor!r}.")

    @property
    def gates(self) -> dict[str, Gate]:
        return {} if self.decay is None else {"log_decay": self.decay}

    @property
    def identity(self) -> bool:
        """True if the weights are the accumulator."""
        return True

    @property
    def scalar_link(self) -> bool:
        """True if the link multiplies A by one number, `factor`."""
        return True

    def factor(self, a: jax.Array, a0: jax.Array) -> jax.Array:
        """The number `[..., 1, 1]` by which a scalar link multiplies A. Reads inside a chunk use
        the factor of the chunk's start, so that they stay linear in its writes."""
        return jnp.ones((1, 1), a.dtype)

    def link(self, a: jax.Array, a0: jax.Array, layer: Layer) -> jax.Array:
        """W = link(A) for accumulator A and initial accumulator A_0, both `[..., in, out]`."""
        return a * self.factor(a, a0)

    def initial_std(self, layer: Layer) -> float:
        """Standard deviation of A_0 at which the weights of `layer` start at its own scale."""
        return layer.std

    def gain(self, layer: Layer) -> float:
        """Size of dW/dA at the start; normalised steps divide by it, so that a step of 1 means
        the same under every link."""
        return 1.0


def NoRetention() -> Retention:
    """Keeps everything: A_t = A_{t-1} - eta_t g_t."""
    return Retention()


def L2Decay(
    decay: Gate | None = None, *, anchor: str = "initial", decay_first: bool = False
) -> Retention:
    """Local and global l2 retention (Miras section 3.2, Titans): weight decay by a gate."""
    return Retention(decay=decay or gate.log_decay(), anchor=anchor, decay_first=decay_first)


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

    @property
    def identity(self):
        return False

    @property
    def scalar_link(self):
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

    @property
    def identity(self):
        return False

    @property
    def scalar_link(self):
        return False

    def link(self, a, a0, layer):
        c = self.gain(layer) * layer.inputs
        if not self.signed:
            return c * jax.nn.softmax(a, axis=-2)
        # sinh and cosh of A share one shift, the largest |A| of each column, so none overflows.
        top = jnp.max(jnp.abs(a), axis=-2, keepdims=True)
        top = jax.lax.stop_gradient(top)
        plus, minus = jnp.exp(a - top), jnp.exp(-a - top)
        return c * (plus - minus) / jnp.sum(plus + minus, axis=-2, keepdims=True)

    def initial_std(self, layer):
        return 1.0

    def gain(self, layer):
        return self.scale * (layer.std or 1.0)
