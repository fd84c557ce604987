"""Third choice, the retention gate: how the memory holds on to the past.

State lives in the dual. The engine carries an accumulator A and a retention gate says three things:
how A decays, which weights it stands for, and what becomes of it at the end of a chunk,

    A_t = anchor + rho_t (A_{t-1} - anchor) - eta_t g_t          W_t = link(A_t)
    A_C <- commit(A_C)          after the C-th token.

`rho = exp(log_decay)`. A and W are `[..., inputs, outputs]`, one head or many. The gates with a
link or a commit of their own are in `memory/links.py`.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from miras_jax.memory import gate
from miras_jax.memory.architecture import Layer
from miras_jax.memory.gate import Gate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """Decay of the accumulator; the identity link; nothing at the chunk's end.

    Attributes:
      decay: gate of the log decay, per head, key channel or value channel; None keeps everything.
        A layer of the memory without that channel axis decays by the channels' geometric mean.
      value_decay: a second gate of the log decay, per value channel, for a decay of the form
        `alpha_i beta_j` (decaying fast weights); None without.
      anchor: what A decays to. "initial", the learned initial memory, is the choice for deep
        memories: at "zero" the weights of an MLP vanish and its LayerNorm divides by almost
        nothing (outer gradients of 1e6 and more). For a matrix that starts at zero both agree.
      decay_first: the residual is measured against the decayed memory (Gated DeltaNet and its
        kin) instead of the one before the decay (Titans, Miras). Only the exact delta rule has
        the choice; elsewhere gradients are taken at the start of the chunk.
    """

    decay: Gate | None = None
    value_decay: Gate | None = None
    anchor: Literal["zero", "initial"] = "initial"
    decay_first: bool = False

    identity = True
    """True if the weights are the accumulator."""
    commits = False
    """True if the end of a chunk changes the accumulator."""
    tangent = False
    """True if tokens inside a chunk read `link(A_s) + slope(A_t - A_s)`, A_s the chunk's start."""
    over_inputs = False
    """True if the gate couples the inputs of each output, which a diagonal layer has not."""
    needs_start = False
    """True if the gate is undefined for a memory that starts at zero."""

    def __post_init__(self):
        if self.anchor not in ("zero", "initial"):
            raise ValueError(f"anchor must be 'zero' or 'initial', got {self.anchor!r}.")
        for name, spec in self.gates.items():
            if spec.range[1] > 0:
                raise ValueError(
                    f"{name} is a log decay, at most 0, got a gate of range {spec.range}: make it "
                    "with log_decay(...)."
                )
        if self.value_decay is not None and self.value_decay.per != "value":
            raise ValueError(f"value_decay is per value channel, got per={self.value_decay.per!r}.")

    @property
    def gates(self) -> dict[str, Gate]:
        gates = {"log_decay": self.decay, "log_value_decay": self.value_decay}
        return {name: gate for name, gate in gates.items() if gate is not None}

    @property
    def scalar_link(self) -> bool:
        """True if the link multiplies each output of A by one number, `factor`."""
        return True

    def start(self, parameter: jax.Array, layer: Layer) -> jax.Array:
        """The initial accumulator A_0 for a layer's learned parameter."""
        return parameter

    def factor(self, a: jax.Array, a0: jax.Array) -> jax.Array:
        """The numbers `[..., 1, 1 or outputs]` by which a scalar link multiplies A. Reads inside a
        chunk use the factor of the chunk's start, so that they stay linear in its writes."""
        return jnp.ones((1, 1), a.dtype)

    def link(self, a: jax.Array, a0: jax.Array, layer: Layer) -> jax.Array:
        """W = link(A) for accumulator A and initial accumulator A_0, both `[..., in, out]`."""
        return a * self.factor(a, a0)

    def slope(self, x: jax.Array, layer: Layer) -> jax.Array:
        """`x G` for x `[..., inputs]`, G the mean derivative of W by A over weights like those at
        the start: what a gate with a `tangent` reads a change of A with."""
        raise NotImplementedError(f"{type(self).__name__} has no tangent.")

    def within(self, a: jax.Array, start: jax.Array, a0: jax.Array, layer: Layer) -> jax.Array:
        """W as tokens inside a chunk read it, linear in A: for accumulator A, A_s at the chunk's
        start and the initial A_0."""
        if self.tangent:
            return self.link(start, a0, layer) + self.slope((a - start).mT, layer).mT
        return a * self.factor(start, a0)

    def commit(self, a: jax.Array, start: jax.Array, a0: jax.Array, layer: Layer) -> jax.Array:
        """The accumulator that the next chunk starts from, for the one at this chunk's end, the
        one at its start and the initial one."""
        return a

    def initial_std(self, layer: Layer) -> float:
        """Standard deviation of the learned parameter at which the weights of `layer` start at its
        own scale."""
        return layer.std

    def gain(self, layer: Layer) -> float:
        """Size of dW/dA at the start; normalised steps divide by it, so that a step of 1 means
        the same under every link."""
        return 1.0


def NoRetention() -> Retention:
    """Keeps everything: A_t = A_{t-1} - eta_t g_t (local l2 retention alone)."""
    return Retention()


def L2Decay(
    decay: Gate | None = None, *, anchor: str = "initial", decay_first: bool = False
) -> Retention:
    """Local and global l2 retention (Miras section 3.2, Titans): weight decay by a gate."""
    return Retention(decay=decay or gate.log_decay(), anchor=anchor, decay_first=decay_first)
