"""Causal sums whose pairs (t, i) decay channel by channel, `exp(sum_{i<j<=t} log_decay_jn)`.

Formed outright the decays would be C C n numbers. Every pair i < t is split at one place: the
middle of the smallest aligned block of 2, 4, 8 .. C tokens that holds both. From i to the middle
and from the middle to t the decays are at most 1 and belong to one side of a matrix product each,
so that the C C n numbers become log2(C) masked products. No decay is ever divided by another, and
every logarithm is the sum of exactly the tokens between: nothing overflows, nothing cancels, in the
derivative neither.

At each size the earlier half of a block needs decays to the middle and the later half from the
middle, so one array `[C, n]` holds both. The sums double: a block's sums are those of its halves
and, for one of them, the total of the other. Pairs in one block of 4 are cheaper one by one.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.products import Precision, column, product, rows_and_columns, sums

FORGET = -1e30
"""A log decay that leaves nothing, finite so that zero times it is zero."""

NEAR = 2
"""Pairs in a block of 2^NEAR tokens are summed without a matrix product, one distance at a time."""


class ChannelDecays(NamedTuple):
    """Decays of a chunk of C tokens, per key channel; all at most 1.

    Attributes:
      single: `[C, n]`, of the token itself.
      levels: `[C, n]` for blocks of 2, 4 .. tokens: to the middle of its block for a token of the
        earlier half, from the middle to after t for one of the later half.
      levels_before: the same, but to before t's own decay; None if not asked for.
      kept: `[C, 1]`, zero where a document begins; None without documents.
      start: `[C, n]`, from the chunk's start to after t.
      start_before: the same, but to before t's own decay; None if not asked for.
      end: `[C, n]`, from after t to the chunk's end.
      total: `[n, 1]`, over the chunk.
      slices: whether the compiler can take rows of a value.
    """

    single: jax.Array
    levels: list[jax.Array]
    levels_before: list[jax.Array] | None
    kept: jax.Array | None
    start: jax.Array
    start_before: jax.Array | None
    end: jax.Array
    total: jax.Array
    slices: bool

    def scores(self, x, u, precision: Precision, before: bool = False) -> jax.Array:
        """`sum_n x_tn u_in decay_tin` `[C, C]` for i <= t, or with `before` for i < t with the
        decay up to before t's own, where that was asked for; zero elsewhere. x, u `[C, n]`."""
        size = x.shape[0]
        t, i = rows_and_columns(size, size)
        if before:
            result = jnp.zeros((size, size), x.dtype)
        else:
            result = jnp.where(t == i, jnp.sum(x * u, axis=1, keepdims=True), 0.0)
        early = before and self.levels_before is not None
        near = NEAR if self.slices else 0
        passed = u
        for distance in range(1, min(1 << near, size)):
            u_moved = next_row(passed)
            passed = u_moved * self.single
            s = jnp.sum(x * (u_moved if early else passed), axis=1, keepdims=True)
            if early and self.kept is not None:
                s = s * self.kept
            result = jnp.where((t - i == distance) & (t >> near == i >> near), s, result)
        reads = self.levels_before if early else self.levels
        for bits in range(near, len(self.levels)):
            pairs = product(x * reads[bits], u * self.levels[bits], "nt", precision)
            later = (t >> bits) - (i >> bits) == 1
            result = jnp.where(later & (t >> (bits + 1) == i >> (bits + 1)), pairs, result)
        return result


def channel_decays(
    log_decay: jax.Array, reset: jax.Array | None, before: bool = False, slices: bool = True
) -> ChannelDecays:
    """The decays of a chunk.

    Args:
      log_decay: `[C, n]`, <= 0; C a power of two.
      reset: bool `[C, 1]`, where a document begins: everything earlier is forgotten; or None.
      before: also give those that end before a token's own decay.
      slices: whether the compiler can take rows of a value.
    """
    size, n = log_decay.shape
    if size & (size - 1):
        raise ValueError(f"Decays per channel need chunks of a power of two, got {size} tokens.")
    gone, kept = 0.0, None
    if reset is not None:
        gone = jnp.where(reset, FORGET, 0.0).astype(log_decay.dtype)
        kept = jnp.where(reset, 0.0, 1.0).astype(log_decay.dtype)
        log_decay = jnp.where(reset, FORGET, log_decay)
    t = rows_and_columns(size, n)[0]

    # Over a token's block: up to it, up to before it, and after it.
    upto, earlier, after = log_decay, jnp.zeros_like(log_decay), jnp.zeros_like(log_decay)
    levels, levels_before = [], []
    for bits in range(size.bit_length() - 1):
        later = (t >> bits) & 1 == 1
        levels.append(jnp.exp(jnp.where(later, upto, after)))
        if before:
            levels_before.append(jnp.exp(earlier + gone))
        other = swap_halves(upto + after, bits, slices)
        from_other = jnp.where(later, other, 0.0)
        upto, after = upto + from_other, after + jnp.where(later, 0.0, other)
        if before:
            earlier = earlier + from_other
    return ChannelDecays(
        single=jnp.exp(log_decay),
        levels=levels,
        levels_before=levels_before if before else None,
        kept=kept,
        start=jnp.exp(upto),
        start_before=jnp.exp(earlier + gone) if before else None,
        end=jnp.exp(after),
        total=column(jnp.exp(jnp.sum(log_decay, axis=0, keepdims=True))),
        slices=slices,
    )


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def swap_halves(x: jax.Array, bits: int, slices: bool = True) -> jax.Array:
    """x `[C, n]` with the halves of every aligned block of `2 << bits` rows in each other's place;
    its own transpose."""
    size, half = x.shape[0], 1 << bits
    if not slices:
        t, i = rows_and_columns(size, size)
        return sums(t == i ^ half, x)
    if half >= 8:  # whole tiles of a TPU
        starts = [start ^ half for start in range(0, size, half)]
        return jnp.concatenate([x[start : start + half] for start in starts])
    t = rows_and_columns(*x.shape)[0]
    return jnp.where((t >> bits) & 1 == 1, jnp.roll(x, half, 0), jnp.roll(x, -half, 0))


swap_halves.defvjp(
    lambda x, bits, slices: (swap_halves(x, bits, slices), None),
    lambda bits, slices, _, d: (swap_halves(d, bits, slices),),
)


@jax.custom_vjp
def next_row(x: jax.Array) -> jax.Array:
    """Row t is row t - 1 of x `[C, n]`, and row 0 the last."""
    return jnp.roll(x, 1, 0)


next_row.defvjp(lambda x: (next_row(x), None), lambda _, d: (jnp.roll(d, -1, 0),))
