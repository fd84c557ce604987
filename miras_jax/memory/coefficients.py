"""How the gates of a chunk weigh its past: the causal coefficients of a linear algorithm.

Unrolling `S_t = mu_t S_{t-1} - eta_t g_t`, `D_t = rho_t D_{t-1} + S_t` (D = A - anchor) over the
tokens of a chunk gives, for tokens of the document that was running when the chunk began,

    D_t = carry_t D_start + momentum_carry_t S_start - sum_{i<=t} write[t,i] eta_i g_i

and for a document that begins inside the chunk the same sum from its first token on, with
`fresh_t D_initial` instead of the two first terms. Gradient descent is the case mu = 0.

Sums of logs are taken before `exp`, over exactly the tokens between i and t (differences of two
cumulative sums would lose the digits of weak decays after a strong one); products of momenta may
contain zeros and stay products.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Coefficients(NamedTuple):
    """Coefficients of one layer over a chunk of C tokens; n is 1, or the channels that decay.

    Attributes:
      carry: `[C, n]`, weight of D_start.
      fresh: `[C, n]`, weight of D_initial; zero where the chunk's first document goes on.
      momentum_carry: `[C, n]`, weight of S_start.
      write: `[C, C, n]`, weight of the gradient of token i (second axis) in the memory after
        token t (first axis); zero for i > t and across documents.
    """

    carry: jax.Array
    fresh: jax.Array
    momentum_carry: jax.Array
    write: jax.Array


class Documents(NamedTuple):
    """Which tokens of a chunk belong together.

    Attributes:
      fresh: bool `[C]`, the token's document began inside this chunk.
      same: bool `[C, C]`, t and i are of one document and i <= t.
      live: bool `[C]`, the token exists (padding neither writes nor decays).
    """

    fresh: jax.Array
    same: jax.Array
    live: jax.Array


def documents(length: int, reset: jax.Array | None, live: jax.Array | None) -> Documents:
    """Documents of a chunk from its marks: `reset [C]` where one begins, `live [C]`."""
    same = jnp.tril(jnp.ones((length, length), bool))
    number = jnp.zeros(length, jnp.int32)
    if reset is not None:
        number = jnp.cumsum(reset.astype(jnp.int32))
        same &= number[:, None] == number[None, :]
    live = jnp.ones(length, bool) if live is None else live
    return Documents(fresh=number > 0, same=same, live=live)


def decays(log_decay: jax.Array, docs: Documents) -> tuple[jax.Array, jax.Array]:
    """Decay from after token i to after token t, and from the chunk's (or document's) start.

    Args:
      log_decay: `[C, n]`, <= 0, zero where no token lives.

    Returns:
      `[C, C, n]`, `exp(sum_{i<j<=t} log_decay_j)`, zero outside `docs.same`; and `[C, n]`.
    """
    length, dtype = log_decay.shape[0], log_decay.dtype
    upto = jnp.tril(jnp.ones((length, length), dtype))
    after = jnp.tril(jnp.ones((length, length), dtype), -1)  # [j, i]: i < j
    steps = after[:, :, None] * log_decay[:, None, :]
    if log_decay.shape[1] == 1:
        between = (upto @ steps[..., 0])[..., None]  # a sum as a product: cheap to compile and run
    else:
        between = jnp.cumsum(steps, axis=0)
    same = docs.same[:, :, None]
    start = docs.same.astype(dtype) @ log_decay
    return jnp.where(same, jnp.exp(jnp.where(same, between, 0.0)), 0.0), jnp.exp(start)


def products(momentum: jax.Array, docs: Documents) -> tuple[jax.Array, jax.Array]:
    """Momentum carried from after token i to after token t `[C, C]`, and from the chunk's start
    `[C]` (zero for documents that began inside). `momentum [C]` is 1 where no token lives."""
    length = momentum.shape[0]
    after = jnp.tril(jnp.ones((length, length), bool), -1)
    between = jnp.cumprod(jnp.where(after, momentum[:, None], 1.0), axis=0)
    start = jnp.where(docs.fresh, 0.0, jnp.cumprod(momentum))
    return jnp.where(docs.same, between, 0.0), start


def coefficients(
    log_decay: jax.Array, momentum: tuple[jax.Array, jax.Array] | None, docs: Documents
) -> Coefficients:
    """Coefficients from the log decay `[C, n]` and the `products` of the momentum, if any."""
    write, start = decays(log_decay, docs)
    fresh = docs.fresh[:, None]
    carry, fresh_carry = jnp.where(fresh, 0.0, start), jnp.where(fresh, start, 0.0)
    momentum_carry = jnp.zeros_like(carry)
    if momentum is not None:
        # D_t sums S_j over the tokens j <= t, each decayed from j to t; padding adds no S.
        write = write * docs.live.astype(write.dtype)[None, :, None]
        between, from_start = momentum
        momentum_carry = jnp.einsum("tjn,j->tn", write, from_start)
        write = jnp.einsum("tjn,ji->tin", write, between)
    return Coefficients(carry, fresh_carry, momentum_carry, write)


def before(c: Coefficients, reset: jax.Array | None) -> Coefficients:
    """The coefficients of the memory just before token t: those after token t - 1, the start of
    the chunk for the first token, the initial memory for the first token of a document."""

    def shift(x, first):
        return jnp.concatenate([jnp.full_like(x[:1], first), x[:-1]])

    earlier = Coefficients(
        shift(c.carry, 1.0), shift(c.fresh, 0.0), shift(c.momentum_carry, 0.0), shift(c.write, 0.0)
    )
    if reset is None:
        return earlier

    def begin(x, value):
        mark = reset.reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.where(mark, value, x)

    return Coefficients(
        begin(earlier.carry, 0.0),
        begin(earlier.fresh, 1.0),
        begin(earlier.momentum_carry, 0.0),
        begin(earlier.write, 0.0),
    )


def before_write(c: Coefficients) -> Coefficients:
    """The coefficients of the memory that has decayed for token t but not yet received its
    write (Gated DeltaNet's residual). For gradient descent."""
    length = c.write.shape[0]
    strict = jnp.tril(jnp.ones((length, length), bool), -1)[:, :, None]
    return c._replace(write=jnp.where(strict, c.write, 0.0))
