"""Fourth choice, the learning algorithm: how the memory takes a step.

The algorithms here are linear in the gradients, so that the accumulator after any token of a chunk
is a causal sum of outer products; `memory/coefficients.py` gives its coefficients. Those that take
one step a chunk, by whatever rule, are in `memory/chunk_algorithm.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from miras_jax.memory.architecture import Layer
from miras_jax.memory.gate import Gate


class Step(NamedTuple):
    """One inner step of C tokens.

    Attributes:
      key: `[C, K]`, what the outer product is written with.
      value: `[C, V]`, the target.
      address: `[C, K]`, what the prediction is read with; None is the key.
      step: eta, `[C]` or `[C, n]`; None is 1.
    """

    key: jax.Array
    value: jax.Array
    address: jax.Array | None
    step: jax.Array | None


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
      lift: gate per head, or None. Token t reads `start + lift_t (A_t - start)`, start the memory
        at the chunk's start, and the chunk ends at what its last token reads: TTT's scale by the
        position of the reading token (arXiv 2407.04620).
      layer_steps: names of layers that have a step gate of their own, "step_<layer>" (LaCT).
    """

    step: Gate | None = Gate()
    normalized: bool = False
    eps: float = 1e-2
    lift: Gate | None = None
    layer_steps: tuple[str, ...] = ()

    steps_a_chunk = False
    """True for algorithms that take one step a chunk."""
    needs_exact = False
    """True if the step is only defined where every gradient is taken at its own token's memory."""

    def __post_init__(self):
        if self.lift is not None and self.lift.per != "head":
            raise ValueError(f"The lift is per head, got per={self.lift.per!r}.")
        if self.layer_steps and self.step is None:
            raise ValueError("layer_steps need a step gate to be like; step is None.")

    @property
    def gates(self) -> dict[str, Gate]:
        gates = {} if self.step is None else {"step": self.step}
        gates |= {f"step_{name}": self.step for name in self.layer_steps}
        return gates if self.lift is None else {**gates, "lift": self.lift}

    def step_gate(self, layer: str) -> str:
        """The name of the gate that steers a layer's step."""
        return f"step_{layer}" if layer in self.layer_steps else "step"

    def steps(self, key: jax.Array, value: jax.Array, gates: Mapping) -> tuple[Step, ...]:
        """The inner steps of a token in their order, for C tokens."""
        return (Step(key, value, None, gates.get("step")),)

    def direction(self, layer: Layer, x: jax.Array, gain: float) -> jax.Array:
        """Left factor u of a layer's outer product `u d^T` for its input x `[C, inputs]`."""
        if not self.normalized:
            return x
        return x / (gain * (layer.square(x) + self.eps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum(GradientDescent):
    """`S_t = mu_t S_{t-1} - eta_t g_t`, `A_t = decayed A_{t-1} + S_t` (Titans Eqs. 13-14, with
    the sign of Titans; Miras prints it reversed). mu = 0 is gradient descent.

    Attributes:
      momentum: gate of mu, per head, in (0, 1).
      nesterov: adds `mu_t S_t - eta_t g_t` instead of S_t, the step from where the momentum leads.
    """

    momentum: Gate = Gate(initial=0.5)
    nesterov: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.momentum.per != "head":
            raise ValueError(f"Momentum is per head, got per={self.momentum.per!r}.")

    @property
    def gates(self):
        return {**super().gates, "momentum": self.momentum}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implicit(GradientDescent):
    """The implicit (proximal) step on l2, `A_t = argmin |A - A_{t-1}|^2 + eta |k A - v|^2`, in
    closed form a step of `eta / (1 + eta |k|^2)` (Longhorn, arXiv 2407.14207). A negative eta, the
    control `ascent`, takes the step of -eta the other way."""

    needs_exact = True

    def steps(self, key, value, gates):
        square = jnp.sum(key * key, axis=-1)
        step = gates.get("step", jnp.ones_like(square))
        square = square if step.ndim == 1 else square[:, None]
        return (Step(key, value, None, step / (1 + jnp.abs(step) * square)),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeveralSteps(GradientDescent):
    """n gradient steps a token, each with its own key, value and step (DeltaProduct, arXiv
    2502.10297); the decay acts before the first. k, v and the gate "step" are those of the first,
    "key_j", "value_j" and "step_j" those of step j = 2 .. n.

    Attributes:
      count: n, at least 1.
    """

    count: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.count < 1 or self.layer_steps:
            raise ValueError(
                f"SeveralSteps needs count >= 1 and no layer_steps, got {self.count}, "
                f"{self.layer_steps}."
            )

    @property
    def gates(self):
        gates = dict(super().gates)
        for j in range(2, self.count + 1):
            gates[f"key_{j}"] = Gate("key", "unit")
            gates[f"value_{j}"] = Gate("value", "identity")
            if self.step is not None:
                gates[f"step_{j}"] = self.step
        return gates

    def steps(self, key, value, gates):
        later = (
            Step(gates[f"key_{j}"], gates[f"value_{j}"], None, gates.get(f"step_{j}"))
            for j in range(2, self.count + 1)
        )
        return (Step(key, value, None, gates.get("step")), *later)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoupled(GradientDescent):
    """A delta rule whose erasing and writing are steered apart, `S_t = S' + eta k^T (w * v - (e *
    p) S')`: what is read for the residual need not be where the residual is written.

    Attributes:
      erase: gate e per key channel, or None for 1 (Gated DeltaNet-2, arXiv 2605.22791).
      write: gate w per value channel, or None for 1 (the same).
      address: a further key p, or None for k (Comba, arXiv 2506.02475).
    """

    step: Gate | None = None
    erase: Gate | None = None
    write: Gate | None = None
    address: Gate | None = None

    needs_exact = True

    def __post_init__(self):
        super().__post_init__()
        for name, per in (("erase", "key"), ("write", "value"), ("address", "key")):
            gate = getattr(self, name)
            if gate is not None and gate.per != per:
                raise ValueError(f"{name} is per {per} channel, got per={gate.per!r}.")

    @property
    def gates(self):
        mine = {"erase": self.erase, "write": self.write, "address": self.address}
        return {**super().gates, **{name: gate for name, gate in mine.items() if gate is not None}}

    def steps(self, key, value, gates):
        address = gates.get("address", key) * gates.get("erase", 1.0)
        return (Step(key, value * gates.get("write", 1.0), address, gates.get("step")),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Removal(GradientDescent):
    """`S_t = decayed S_{t-1} + b_t^T (a_t S_{t-1}) + k_t^T v_t`: one rank-one removal, one Hebbian
    write (RWKV-7, arXiv 2503.14456, Eq. 17). In two steps: a residual read at "removal" a, written
    at "replacement" b, towards nothing; then the pair (k, v), read at nothing. The step scales the
    pair."""

    step: Gate | None = None

    needs_exact = True

    @property
    def gates(self):
        vector = Gate("key", "identity")
        return {**super().gates, "removal": vector, "replacement": vector}

    def steps(self, key, value, gates):
        removal = Step(-gates["replacement"], jnp.zeros_like(value), gates["removal"], None)
        return (removal, Step(key, value, jnp.zeros_like(key), gates.get("step")))
