"""Matrix memories as a step: linear attention with decays, delta rules, RWKV-7's removal.

A chunk of C tokens with memory S_0 at its start. Token t's memory holds S_0 under the decay up to t
and every earlier write u_i^T e_i under the decay from i to t, u_i = step_i k_i:

    y_t = (decay q_t) S_0 + sum_{i<=t} A_ti e_i          A = decayed scores of q and u
    S_C = decay S_0 + sum_i (decay u_i)^T e_i

Linear attention writes e = v. A delta rule writes the residual at its own token's memory, which
holds the earlier residuals: `(I + L) e = v - (decay a) S_0`, L the decayed scores of the address a
and u below the diagonal (arXiv 2412.06464, section 3.3). A removal writes b_t^T r_t beside the
pair, where r_t is what a_t reads before: `(I - L) r = (decay a) S_0 + A' v`, L the scores of a and
b, A' of a and k.

A document's start is a decay that leaves nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.channels import FORGET, channel_decays
from kernels_pallas.products import (
    Precision,
    as_row,
    column,
    product,
    rows_and_columns,
    sums,
)
from kernels_pallas.triangular import solve_unit_lower
from miras_jax.memory.algorithm import Decoupled, GradientDescent, Implicit, Removal
from miras_jax.memory.architecture import Matrix
from miras_jax.memory.bias import L2, DotProduct


@dataclasses.dataclass(frozen=True)
class LinearStep:
    """A chunk of a matrix memory; exact at every chunk size, C at most 16 or a multiple of it.

    The carry is "memory" `[K, V]`; no consts. Tokens: q, k `[C, K]`, v `[C, V]`, and by kind "step"
    and "log_decay" `[C, 1]` or `[C, K]`, "address", "removal", "replacement" `[C, K]`. The mark is
    "reset". A token that is all zeros changes nothing and reads zero: rows are padded with it.

    Attributes:
      kind: "write" (dot product), "delta" (l2) or "removal".
      decay_first: a residual is read after its token's decay.
      precision: "highest", or "bfloat16" for bfloat16 tokens: operands of the products of tokens
        are rounded, those of the triangular solve are two bfloat16 numbers each; logs and sums stay
        float32.
      target: whose compiler: a GPU's cannot take rows of a value, and has no float32 products that
        use its matrix units.
    """

    kind: Literal["write", "delta", "removal"] = "write"
    decay_first: bool = False
    precision: Literal["highest", "bfloat16"] = "highest"
    target: Literal["tpu", "gpu"] = "tpu"

    zero_padding: ClassVar[bool] = True
    """Channels of zeros change nothing."""

    @property
    def name(self) -> str:
        return f"linear_{self.kind}"

    def __call__(self, carry, consts, tokens, marks):
        memory, q, k, v = carry["memory"], tokens["q"], tokens["k"], tokens["v"]
        reset = marks["reset"] > 0 if "reset" in marks else None
        if q.shape[0] == 1:
            after, y = self._token(memory, tokens, reset)
            return {"memory": after}, y
        before = self.kind != "write" and not self.decay_first and "log_decay" in tokens
        slices = self.target == "tpu"
        decays = _decays(tokens.get("log_decay"), reset, k, before, slices)
        u = k * tokens["step"] if "step" in tokens else k

        exact = "highest" if slices else "bfloat16x6"
        precision, of_solve = exact, exact
        if self.precision == "bfloat16":
            precision, of_solve = "bfloat16", "bfloat16x3"

        def times(a, b, form="nn"):
            return product(a, b, form, precision)

        def scores(x, u, early=False):
            return decays.scores(x, u, precision, early)

        def solve(lower, b):
            return solve_unit_lower(lower, b, of_solve, slices)

        y = times(q * decays.start, memory)
        after = decays.total * memory
        written = v
        if self.kind != "write":
            start = decays.start_before if before else decays.start
            address = tokens.get("removal" if self.kind == "removal" else "address", k)
            # A select that changes nothing. Without it the compiler of v6e mixes up the products
            # with the memory and with its transpose in the backward pass of DeltaNet, and fails.
            recalled = times(address * start, jnp.where(memory == memory, memory, jnp.nan))
            if self.kind == "delta":
                written = solve(scores(address, u, True), v - recalled)
            else:
                into = tokens["replacement"]
                recalled += times(scores(address, u, True), v)
                removed = solve(-scores(address, into, True), recalled)
                y += times(scores(q, into), removed)
                after += times(into * decays.end, removed, "tn")
        y += times(scores(q, u), written)
        after += times(u * decays.end, written, "tn")
        return {"memory": after}, y

    def _token(self, memory, tokens, reset):
        """A chunk of one token, by sums of rows: one row is no work for a matrix unit."""
        if reset is not None:
            memory = jnp.where(reset, 0.0, memory)
        k, v = tokens["k"], tokens["v"]
        decayed = memory
        if "log_decay" in tokens:
            log_decay = tokens["log_decay"]
            decayed = memory * jnp.exp(log_decay if log_decay.shape[1] == 1 else column(log_decay))

        def read(x, memory):
            return jnp.sum(column(x) * memory, axis=0, keepdims=True)

        if self.kind == "delta":
            v = v - read(tokens.get("address", k), decayed if self.decay_first else memory)
        u = k * tokens["step"] if "step" in tokens else k
        after = decayed + column(u) * v
        if self.kind == "removal":
            after += column(tokens["replacement"]) * read(tokens["removal"], memory)
        return after, read(tokens["q"], after)


class HeadDecays(NamedTuple):
    """Decays of a chunk of C tokens, one for all channels; as `ChannelDecays`, with n = 1.

    Attributes:
      pairs: `[C, C]`, from after i to after t; zero for i > t.
      pairs_before: from after i to before t's own decay, zero for i >= t; None if not asked for.
      start, start_before, end: `[C, 1]`.
      total: `[1, 1]`.
    """

    pairs: jax.Array
    pairs_before: jax.Array | None
    start: jax.Array
    start_before: jax.Array | None
    end: jax.Array
    total: jax.Array

    def scores(self, x, u, precision: Precision, before: bool = False) -> jax.Array:
        """As in `ChannelDecays`."""
        s = product(x, u, "nt", precision)
        if not before:
            return s * self.pairs
        if self.pairs_before is not None:
            return s * self.pairs_before
        t, i = rows_and_columns(*s.shape)
        return jnp.where(t > i, s * self.pairs, 0.0)


def head_decays(log_decay: jax.Array, reset: jax.Array | None, before: bool = False) -> HeadDecays:
    """The decays of a chunk for `log_decay [C, 1]`; the rest as in `channel_decays`."""
    size = log_decay.shape[0]
    gone = None
    if reset is not None:
        gone = jnp.where(reset, FORGET, 0.0).astype(log_decay.dtype)
        log_decay = jnp.where(reset, FORGET, log_decay)
    t, i = rows_and_columns(size, size)
    row = as_row(log_decay)

    def total(chosen):
        return jnp.sum(jnp.where(chosen, row, 0.0), axis=1, keepdims=True)

    after_i = jnp.where(t > i, log_decay, 0.0)  # of token t, by column i
    pairs = jnp.where(t >= i, jnp.exp(sums(t >= i, after_i)), 0.0)
    pairs_before = start_before = None
    if before:
        pairs_before = sums(t > i, after_i)
        start_before = total(i < t)
        if gone is not None:
            pairs_before, start_before = pairs_before + gone, start_before + gone
        pairs_before = jnp.where(t > i, jnp.exp(pairs_before), 0.0)
        start_before = jnp.exp(start_before)
    return HeadDecays(
        pairs=pairs,
        pairs_before=pairs_before,
        start=jnp.exp(total(i <= t)),
        start_before=start_before,
        end=jnp.exp(total(i > t)),
        total=jnp.exp(jnp.sum(log_decay, axis=0, keepdims=True)),
    )


class NoDecays(NamedTuple):
    """A chunk without decays and documents."""

    start = 1.0
    end = 1.0
    total = 1.0

    def scores(self, x, u, precision: Precision, before: bool = False) -> jax.Array:
        """As in `ChannelDecays`."""
        s = product(x, u, "nt", precision)
        t, i = rows_and_columns(*s.shape)
        return jnp.where(t > i if before else t >= i, s, 0.0)


def _decays(log_decay, reset, like, before, slices):
    if log_decay is None:
        if reset is None:
            return NoDecays()
        log_decay = jnp.zeros((like.shape[0], 1), like.dtype)
    if log_decay.shape[1] == 1:
        return head_decays(log_decay, reset, before)
    return channel_decays(log_decay, reset, before, slices)


def linear_step(memory: Any, precision: str, target: str = "tpu") -> LinearStep:
    """The step of a matrix memory; precision and target as in `LinearStep`.

    Raises:
      NotImplementedError: the memory is another one; the message says in what.
    """
    reason = _why_not(memory)
    if reason:
        raise NotImplementedError(f"The kernel for matrix memories does not have {reason}.")
    if isinstance(memory.algorithm, Removal):
        kind = "removal"
    else:
        kind = "delta" if memory.bias.curvature else "write"
    return LinearStep(kind, memory.retention.decay_first, precision, target)


def _why_not(memory) -> str:
    """What the kernel does not have, or an empty string."""
    architecture, bias = memory.architecture, memory.bias
    retention, algorithm = memory.retention, memory.algorithm
    if type(architecture) is not Matrix:
        return f"the architecture {type(architecture).__name__}"
    if type(bias) not in (DotProduct, L2):
        return f"the bias {type(bias).__name__}"
    if not retention.identity or retention.commits:
        return f"the link of {type(retention).__name__}"
    if "log_value_decay" in retention.gates or "value" in _per(retention.gates, "log_decay"):
        return "a decay per value channel"
    if type(algorithm) not in (GradientDescent, Implicit, Decoupled, Removal):
        return f"the algorithm {type(algorithm).__name__}"
    if algorithm.normalized or algorithm.lift is not None or algorithm.layer_steps:
        return "normalised steps, a lift, or steps by layer"
    if "value" in _per(algorithm.gates, "step"):
        return "a step per value channel"
    if memory.read != "token" or not memory.exact:
        return f"read={memory.read!r} or gradients taken at the chunk's start"
    return ""


def _per(gates: Mapping, name: str) -> tuple[str, ...]:
    return (gates[name].per,) if name in gates else ()


def linear_tokens(
    memory: Any, q: jax.Array, k: jax.Array, v: jax.Array, gates: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The tokens of a `LinearStep`, `[B, H, T, n]` by name.

    Args:
      memory: one that `linear_step` takes.
      q, k, v: `[B, H, T, n]`.
      gates: by name, `[B, H, T]` or `[B, H, T, n]`.
    """
    steps = jax.vmap(jax.vmap(memory.algorithm.steps))(k, v, dict(gates))
    write = steps[-1]
    tokens = {"q": q, "k": write.key, "v": write.value}
    if isinstance(memory.algorithm, Removal):
        tokens |= {"removal": gates["removal"], "replacement": gates["replacement"]}
    elif memory.bias.curvature and write.address is not None:
        tokens["address"] = write.address
    if write.step is not None:
        tokens["step"] = write.step
    if "log_decay" in memory.retention.gates:
        tokens["log_decay"] = gates["log_decay"]
    return {name: x[..., None] if x.ndim == 3 else x for name, x in tokens.items()}
