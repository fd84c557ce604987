"""Fourth choice, the learning algorithm: how the memory takes a step.

Both algorithms here are linear in the gradients, so that the accumulator after any token of a
chunk is a causal sum of outer products; `memory/coefficients.py` gives its coefficients.
"""

import dataclasses

import jax
import jax.numpy as jnp

from miras_jax.memory.gate import Gate


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientDescent:
    """One step a token, `A_t = decayed A_{t-1} - eta_t g_t` (Miras Eq. 5).

    Attributes:
      step: gate of eta; None takes eta = 1 (linear attention). Per key channel it acts on the
        inputs of the layers that read the key, per value channel on the outputs of the layer that
        predicts the value, and by its mean elsewhere.
      normalized: divides a layer's step by `|x|^2 + eps`, x its input (normalised least mean
        squares), and by the link's gain: a step of 1 then corrects one linear layer fully for the
        current key, whatever its width. Without it the step is the plain one of the papers.
      eps: bounds the normalised step of inputs that are nearly zero, at 1 / (2 sqrt(eps)) times
        the cotangent; keys of unit norm lose 1%. A zero key still meets the LayerNorm of a deep
        memory at zero, where outer gradients are large (1e5 to 1e6 seen), so give keys a
        norm.
    """

    step: Gate | None = Gate()
    normalized: bool = False
    eps: float = 1e-2

    @property
    def gates(self) -> dict[str, Gate]:
        return {} if self.step is None else {"step": self.step}

    def direction(self, x: jax.Array, gain: float) -> jax.Array:
        """Left factor u of a layer's outer product `u d^T` for its input x `[C, inputs]`."""
        if not self.normalized:
            return x
        return x / (gain * (jnp.sum(x * x, axis=-1, keepdims=True) + self.eps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum(GradientDescent):
    """`S_t = mu_t S_{t-1} - eta_t g_t`, `A_t = decayed A_{t-1} + S_t` (Titans Eqs. 13-14, with
    the sign of Titans; Miras prints it reversed). mu = 0 is gradient descent.

    Attributes:
      momentum: gate of mu, per head, in (0, 1).
    """

    momentum: Gate = Gate(initial=0.5)

    def __post_init__(self):
        if self.momentum.per != "head":
            raise ValueError(f"Momentum is per head, got per={self.momentum.per!r}.")

    @property
    def gates(self):
        return {**super().gates, "momentum": self.momentum}


Algorithm = GradientDescent | Momentum
