"""Learning algorithms that take one step a chunk, with the sum of the chunk's gradients.

Between its steps the memory does not move: every token reads the last memory that was made
(`read="chunk"` or `"commit"`). With a chunk of one token it is one step a token.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from miras_jax.memory.algorithm import GradientDescent
from miras_jax.memory.gate import Gate

Weights = dict[str, jax.Array]

QUINTIC = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Coefficients (a, b, c) of five Newton-Schulz iterations, as LaCT uses them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkDescent(GradientDescent):
    """`S = mu S - G`, `A = decayed A + S` at every chunk's end, G the sum of `eta_t g_t` over the
    chunk (titans-pytorch, LaCT). The decay is the product of the chunk's, mu the mean.

    Attributes:
      momentum: gate of mu, per head, in (0, 1); None is 0.
    """

    momentum: Gate | None = None

    steps_a_chunk = True

    def __post_init__(self):
        super().__post_init__()
        if self.momentum is not None and self.momentum.per != "head":
            raise ValueError(f"Momentum is per head, got per={self.momentum.per!r}.")
        if self.lift is not None:
            raise ValueError("A lift scales steps within a chunk, of which there are none here.")

    @property
    def gates(self):
        mine = {} if self.momentum is None else {"momentum": self.momentum}
        return {**super().gates, **mine}

    def init(self, weights: Weights) -> Any:
        """The algorithm's state before the first chunk, a pytree, for one head's accumulators."""
        return jax.tree.map(jnp.zeros_like, weights) if self.momentum is not None else {}

    def update(
        self, gradient: Weights, state: Any, weights: Weights, means: Mapping
    ) -> tuple[Weights, Any]:
        """The chunk's step and the state after it.

        Args:
          gradient: G by layer.
          state: the state before.
          weights: accumulators at the chunk's start.
          means: the chunk's mean of each gate per head.
        """
        step = jax.tree.map(jnp.negative, gradient)
        if self.momentum is None:
            return step, state
        step = jax.tree.map(lambda s, g: means["momentum"] * s + g, state, step)
        return step, step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(ChunkDescent):
    """The step of `ChunkDescent`, made orthogonal by Newton-Schulz iterations before it is added
    (Atlas, arXiv 2505.23735; LaCT, arXiv 2505.23884). Layers that are no matrices are left alone.

    Attributes:
      coefficients: (a, b, c) of each iteration `X <- a X + (b A + c A A) X`, `A = X X^T`.
    """

    coefficients: tuple[tuple[float, float, float], ...] = QUINTIC

    def update(self, gradient, state, weights, means):
        step, state = super().update(gradient, state, weights, means)
        return jax.tree.map(lambda x: newton_schulz(x, self.coefficients), step), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optax(ChunkDescent):
    """Any gradient transformation of optax, one per head, applied to the chunk's sum of `eta_t
    g_t` (with a chunk of one token: to every token's).

    Attributes:
      transformation: for instance `optax.adam(1e-2, eps_root=1e-8)`; with a root of a second moment
        that may be zero give it an `eps_root`, or the outer gradient is not a number there. Make it
        once and keep it: two that were made apart count as different, and compile apart.
    """

    transformation: optax.GradientTransformation

    def __post_init__(self):
        super().__post_init__()
        if self.momentum is not None:
            raise ValueError("Optax has no momentum gate: the transformation has its own.")

    def init(self, weights):
        return self.transformation.init(weights)

    def update(self, gradient, state, weights, means):
        return self.transformation.update(gradient, state, weights)


def newton_schulz(x: jax.Array, coefficients=QUINTIC, eps: float = 1e-7) -> jax.Array:
    """A matrix `[m, n]` with its singular values moved towards 1 (Muon, Jordan et al., 2024)."""
    if 1 in x.shape:
        return x
    # The polynomial is the same on either side: take the smaller product. eps^4 keeps the
    # derivative of the norm finite at zero.
    x, wide = (x, False) if x.shape[0] <= x.shape[1] else (x.T, True)
    x = x / (jnp.sqrt(jnp.sum(x * x) + eps**4) + eps)
    for a, b, c in coefficients:
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if wide else x
