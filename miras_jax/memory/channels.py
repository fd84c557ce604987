"""Causal sums whose pairs (t, i) decay channel by channel, `exp(sum_{i<j<=t} log_decay_jn)`.

Formed outright the decays would be C C n numbers. A pair in two blocks of R tokens decays from i to
the end of its block, over the blocks between, and from the start of t's block to t: factors that
are at most 1 and belong to one side of a matrix product each. Only the pairs within a block are
formed channel by channel.

The two public sums have each other as derivatives, and the derivative by the log decay is a
difference of running sums (as in gated linear attention, arXiv 2312.06635, section C): nothing of
size R R n has to be differentiated.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from miras_jax.memory.triangular import KEPT

BLOCK = 4
"""R. Pairs within a block cost R numbers a token and channel, pairs across blocks C / R."""


class Blocks(NamedTuple):
    """Decays of C tokens in b blocks of R, each at most 1.

    Attributes:
      to_end: `[b, R, n]`, from after token i to its block's end.
      between: `[b, b, n]`, over the blocks between the first and the second; zero unless the
        first comes earlier.
      from_start: `[b, R, n]`, from the start of t's block to t.
      within: `[b, R, R, n]`, from after i (second R) to t in one block; 1 for i >= t.
    """

    to_end: jax.Array
    between: jax.Array
    from_start: jax.Array
    within: jax.Array

    def split(self, x: jax.Array) -> jax.Array:
        """`[C, n]` as `[b, R, n]`, padded with zeros."""
        count, size, _ = self.to_end.shape
        return jnp.pad(x, ((0, count * size - x.shape[0]), (0, 0))).reshape(count, size, -1)

    def pairs(self, s: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[C, C]` as `[b, R, b, R]`, padded, and its diagonal blocks `[b, R, R]`."""
        count, size, _ = self.to_end.shape
        pad = count * size - s.shape[0]
        s = jnp.pad(s, ((0, pad), (0, pad))).reshape(count, size, count, size)
        return s, jnp.sum(s * jnp.eye(count, dtype=s.dtype)[:, None, :, None], axis=2)


def blocks(log_decay: jax.Array, lag: int) -> Blocks:
    """The decays of `log_decay [C, n]`; with a lag of 1 they end before t.

    All are products of single tokens' decays: one exponential a number, and no digits to lose.
    """
    length, n = log_decay.shape
    size = min(BLOCK, length)
    count = -(-length // size)
    rho = jnp.pad(jnp.exp(log_decay), ((0, count * size - length), (0, 0)), constant_values=1.0)
    rho = rho.reshape(count, size, n)

    def product(chosen, factors):
        """Of the factors `[b, j, n]` that `chosen [..., j]` says: `[b, ..., n]`, in one pass."""
        factors = jnp.expand_dims(factors, tuple(range(1, chosen.ndim)))
        return jnp.prod(jnp.where(chosen[..., None], factors, 1.0), axis=-2)

    t, i, j = (jnp.arange(size).reshape(shape) for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    c, b, k = (jnp.arange(count).reshape(shape) for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    between = product((c < k) & (k < b), jnp.prod(rho, axis=1)[None])[0]
    return Blocks(
        to_end=product((i < j)[0], rho),
        between=jnp.where(c < b, between, 0.0),
        from_start=product((j <= t - lag)[:, 0], rho),
        within=product((i < j) & (j <= t - lag), rho),
    )


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def scores(
    x: jax.Array, u: jax.Array, log_decay: jax.Array, mask: jax.Array, lag: int
) -> jax.Array:
    """`sum_n x_tn u_in decay_tin` for the pairs of the mask.

    Args:
      x, u: `[C, n]`.
      log_decay: `[C, n]`, <= 0.
      mask: bool `[C, C]`, within i <= t, or i < t with a lag.
      lag: 0 decays from after i to after t, 1 to before t.

    Returns:
      `[C, C]`, zero outside the mask.
    """
    return _scores(blocks(log_decay, lag), x, u, mask)


def _scores(b: Blocks, x, u, mask):
    x, u = b.split(x), b.split(u)
    reached = (x * b.from_start)[None] * b.between[:, :, None]
    far = _einsum("cbtn,cin->btci", reached, u * b.to_end)
    near = jnp.sum(x[:, :, None] * u[:, None] * b.within, axis=-1)
    own = jnp.eye(near.shape[0], dtype=near.dtype)[:, None, :, None]
    side, length = far.shape[0] * far.shape[1], mask.shape[0]
    both = (far + near[:, :, None, :] * own).reshape(side, side)
    return jnp.where(mask, both[:length, :length], 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def weigh(s: jax.Array, d: jax.Array, log_decay: jax.Array, mask: jax.Array, lag: int) -> jax.Array:
    """`sum_i s_ti decay_tin d_in` `[C, n]` over the pairs of the mask, for s `[C, C]`, d `[C, n]`;
    the rest as in `scores`."""
    return _weigh(blocks(log_decay, lag), jnp.where(mask, s, 0.0), d)


def _weigh(b: Blocks, s, d):
    """The sum over i, for t; s zero outside the mask."""
    length, d = s.shape[0], b.split(d)
    s, own = b.pairs(s)
    far = _einsum("btci,cin->cbtn", s, d * b.to_end)
    far = b.from_start * jnp.sum(far * b.between[:, :, None], axis=0)
    near = jnp.sum(own[..., None] * d[:, None] * b.within, axis=2)
    return (far + near).reshape(-1, d.shape[-1])[:length]


def _weigh_back(b: Blocks, s, y):
    """`sum_t s_ti decay_tin y_tn`, for i."""
    length, y = s.shape[0], b.split(y)
    s, own = b.pairs(s)
    reached = (y * b.from_start)[None] * b.between[:, :, None]
    far = b.to_end * _einsum("btci,cbtn->cin", s, reached)
    near = jnp.sum(own[..., None] * y[:, :, None] * b.within, axis=1)
    return (far + near).reshape(-1, y.shape[-1])[:length]


def _log_gradient(read: jax.Array, written: jax.Array, lag: int) -> jax.Array:
    """The derivative by log_decay_j: every pair that reads after j counts, but for those that were
    also written after it. `read [C, n]` sums a token's pairs as reader, `written` as writer."""
    length = read.shape[0]
    later = jnp.triu(jnp.ones((length, length), read.dtype))
    later_read = jnp.triu(jnp.ones((length, length), read.dtype), lag)
    return _einsum("jt,tn->jn", later_read, read) - _einsum("ji,in->jn", later, written)


def _einsum(equation, *operands):
    # Said here, because derivative rules are traced outside their caller's precision context.
    return jnp.einsum(equation, *operands, precision=jax.lax.Precision.HIGHEST)


def _scores_forward(x, u, log_decay, mask, lag):
    b = blocks(log_decay, lag)
    return checkpoint_name(_scores(b, x, u, mask), KEPT), (b, x, u, mask)


def _scores_backward(lag, saved, ds):
    b, x, u, mask = saved
    ds = jnp.where(mask, ds, 0.0)
    dx, du = _weigh(b, ds, u), _weigh_back(b, ds, x)
    return dx, du, _log_gradient(x * dx, u * du, lag), None


def _weigh_forward(s, d, log_decay, mask, lag):
    b, s = blocks(log_decay, lag), jnp.where(mask, s, 0.0)
    y = checkpoint_name(_weigh(b, s, d), KEPT)
    return y, (b, s, d, y, mask)


def _weigh_backward(lag, saved, dy):
    b, s, d, y, mask = saved
    dd = _weigh_back(b, s, dy)
    return _scores(b, dy, d, mask), dd, _log_gradient(y * dy, d * dd, lag), None


scores.defvjp(_scores_forward, _scores_backward)
weigh.defvjp(_weigh_forward, _weigh_backward)
