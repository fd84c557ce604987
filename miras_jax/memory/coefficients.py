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

from miras_jax.memory import channels


class Channels(NamedTuple):
    """The write coefficients `[C, C, n]` of decays per channel, not yet formed (`channels.py`).

    Attributes:
      log_decay: `[C, n]`.
      mask: bool `[C, C]`, which pairs (t, i) count.
      lag: 0 decays from after i to after t, 1 to before t.
    """

    log_decay: jax.Array
    mask: jax.Array
    lag: int

    def scores(self, x: jax.Array, u: jax.Array) -> jax.Array:
        """`sum_n x_tn u_in decay_tin` `[C, C]`, for x, u `[C, n]`."""
        return channels.scores(x, u, self.log_decay, self.mask, self.lag)

    def weigh(self, s: jax.Array, d: jax.Array) -> jax.Array:
        """`sum_i s_ti decay_tin d_in` `[C, n]`, for s `[C, C]` and d `[C, n]`."""
        return channels.weigh(s, d, self.log_decay, self.mask, self.lag)

    def last(self) -> jax.Array:
        """The decays up to the chunk's end, `[C, n]`."""
        length = self.log_decay.shape[0]
        after = jnp.triu(jnp.ones((length, length), self.log_decay.dtype), 1)
        return jnp.where(self.mask[-1][:, None], jnp.exp(after @ self.log_decay), 0.0)


class Coefficients(NamedTuple):
    """Coefficients of one layer over a chunk of C tokens; n is 1, or the channels that decay.

    Attributes:
      carry: `[C, n]`, weight of D_start.
      fresh: `[C, n]`, weight of D_initial; zero where the chunk's first document goes on.
      momentum_carry: `[C, n]`, weight of S_start.
      write: `[C, C]`, weight of the gradient of token i (second axis) in the memory after token t
        (first axis); zero for i > t and across documents. Per channel `Channels`, or with momentum
        `[C, C, n]`.
    """

    carry: jax.Array
    fresh: jax.Array
    momentum_carry: jax.Array
    write: jax.Array | Channels


class Documents(NamedTuple):
    """Which tokens of a chunk belong together.

    Attributes:
      fresh: bool `[C, 1]`, the token's document began inside this chunk.
      same: bool `[C, C]`, t and i are of one document and i <= t.
      live: bool `[C, 1]`, the token exists (padding neither writes nor decays).
    """

    fresh: jax.Array
    same: jax.Array
    live: jax.Array


def documents(length: int, reset: jax.Array | None, live: jax.Array | None) -> Documents:
    """Documents of a chunk from its marks, bool `[C, 1]`: `reset` where one begins, `live`."""
    same = lower(length)
    number = jnp.zeros((length, 1))
    if reset is not None:
        number = same.astype(number.dtype) @ reset.astype(number.dtype)  # a running count
        same &= number == number.T
    live = jnp.ones((length, 1), bool) if live is None else live
    return Documents(fresh=number > 0, same=same, live=live)


def lower(length: int, below: int = 0) -> jax.Array:
    """bool `[C, C]`, `i <= t - below` for row t and column i."""
    t, i = (jax.lax.broadcasted_iota(jnp.int32, (length, length), axis) for axis in (0, 1))
    return i <= t - below


def decays(log_decay: jax.Array, docs: Documents) -> jax.Array:
    """Decay from after token i to after token t, `exp(sum_{i<j<=t} log_decay_j)`, zero outside
    `docs.same`, for log_decay `[C, n]`, <= 0, zero where no token lives. `[C, C]`, or `[C, C, n]`
    for n > 1."""
    length, dtype = log_decay.shape[0], log_decay.dtype
    upto = lower(length).astype(dtype)
    after = lower(length, 1).astype(dtype)  # [j, i]: i < j
    # Sums as products: cheap to compile and to run.
    if log_decay.shape[1] == 1:
        same, between = docs.same, upto @ (after * log_decay)
    else:
        steps = after[:, :, None] * log_decay[:, None, :]
        same, between = docs.same[:, :, None], jnp.einsum("tj,jin->tin", upto, steps)
    return jnp.where(same, jnp.exp(jnp.where(same, between, 0.0)), 0.0)


def products(momentum: jax.Array, docs: Documents) -> tuple[jax.Array, jax.Array]:
    """Momentum carried from after token i to after token t `[C, C]`, and from the chunk's start
    `[C, 1]` (zero for documents that began inside). `momentum [C, 1]` is 1 where no token lives.

    Blocks of tokens are joined in pairs: between token i of the first and t of the second lie the
    rest of the first, `to_end_i`, and the second up to t, `from_start_t`.
    """
    length = momentum.shape[0]
    t, i = (jax.lax.broadcasted_iota(jnp.int32, (length, length), axis) for axis in (0, 1))
    between = (t == i).astype(momentum.dtype)
    from_start, to_end = momentum, jnp.ones_like(momentum).T
    for level in range((length - 1).bit_length()):
        size = 1 << level
        joined = (t >> (level + 1) == i >> (level + 1)) & (t >> level > i >> level)
        between = jnp.where(joined, from_start * to_end, between)
        # The products of whole blocks stand at their last tokens.
        first = joined & (i & (size - 1) == size - 1)
        second = joined & ((t & (size - 1) == size - 1) | (t == length - 1))
        first = jnp.sum(jnp.where(first, from_start.T, 0.0), axis=1, keepdims=True)
        second = jnp.sum(jnp.where(second, from_start, 0.0), axis=0, keepdims=True)
        from_start = jnp.where(t[:, :1] & size > 0, from_start * first, from_start)
        to_end = jnp.where(i[:1] & size > 0, to_end, to_end * second)
    return jnp.where(docs.same, between, 0.0), jnp.where(docs.fresh, 0.0, from_start)


def coefficients(
    log_decay: jax.Array,
    docs: Documents,
    momentum: tuple[jax.Array, jax.Array] | None = None,
    nesterov: jax.Array | None = None,
) -> Coefficients:
    """Coefficients from the log decay.

    Args:
      log_decay: `[C, n]`.
      docs: the chunk's documents.
      momentum: the `products` of the momentum, if any.
      nesterov: mu `[C, 1]` if the momentum is Nesterov's, which adds `mu_t S_t - eta_t g_t`.
    """
    start = jnp.exp(docs.same.astype(log_decay.dtype) @ log_decay)
    carry, fresh_carry = jnp.where(docs.fresh, 0.0, start), jnp.where(docs.fresh, start, 0.0)
    momentum_carry = jnp.zeros_like(carry)
    if log_decay.shape[1] > 1 and momentum is None:
        write = Channels(log_decay, docs.same, lag=0)
        return Coefficients(carry, fresh_carry, momentum_carry, write)
    write = decays(log_decay, docs)
    if momentum is not None:
        # D_t sums S_j over the tokens j <= t, each decayed from j to t; padding adds no S.
        between, from_start = momentum

        def over_tokens(x):
            """x `[C, 1]` of token j, to go with `write`."""
            return x.T if write.ndim == 2 else x[None]

        live = write * over_tokens(docs.live.astype(write.dtype))
        weighted = live if nesterov is None else live * over_tokens(nesterov)
        if write.ndim == 2:
            momentum_carry, write = weighted @ from_start, weighted @ between
        else:
            momentum_carry = jnp.einsum("tjn,j->tn", weighted, from_start[:, 0])
            write = jnp.einsum("tjn,ji->tin", weighted, between)
        if nesterov is not None:
            write += live
    return Coefficients(carry, fresh_carry, momentum_carry, write)


def before(c: Coefficients, reset: jax.Array | None) -> Coefficients:
    """The coefficients of the memory just before token t: those after token t - 1, the start of
    the chunk for the first token, the initial memory for the first token of a document."""

    def begin(x, value):
        if reset is None:
            return x
        return jnp.where(reset if x.ndim == 2 else reset[:, None], value, x)

    def shift(x, first):
        return jnp.concatenate([jnp.full_like(x[:1], first), x[:-1]])

    if isinstance(c.write, Channels):
        mask = begin(shift(c.write.mask, False), False)
        write = c.write._replace(mask=mask, lag=1)
    else:
        write = begin(shift(c.write, 0.0), 0.0)
    return Coefficients(
        begin(shift(c.carry, 1.0), 0.0),
        begin(shift(c.fresh, 0.0), 1.0),
        begin(shift(c.momentum_carry, 0.0), 0.0),
        write,
    )


def before_write(c: Coefficients) -> Coefficients:
    """The coefficients of the memory that has decayed for token t but not yet received its
    write (Gated DeltaNet's residual). For gradient descent."""
    if isinstance(c.write, Channels):
        return c._replace(write=c.write._replace(mask=jnp.tril(c.write.mask, -1)))
    strict = lower(c.write.shape[0], 1)
    strict = strict if c.write.ndim == 2 else strict[:, :, None]
    return c._replace(write=jnp.where(strict, c.write, 0.0))
