"""Packed rows: several documents in one row, told apart by segment ids."""

import jax
import jax.numpy as jnp


def document_starts(
    segment_ids: jax.Array | None, last: jax.Array
) -> tuple[jax.Array | None, jax.Array]:
    """Where documents begin, bool `[B, T]` (None without ids), and the last id of every row.

    `last` is the id of the token before the first, -1 for none, which begins no new document.
    """
    if segment_ids is None:
        return None, last
    segment_ids = segment_ids.astype(jnp.int32)
    previous = jnp.concatenate([last[:, None], segment_ids[:, :-1]], axis=1)
    return (previous != segment_ids) & (previous >= 0), segment_ids[:, -1]
