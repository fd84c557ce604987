"""The non-parametric memory: softmax attention, which keeps every pair (Miras Table 1).

Attention is the Nadaraya-Watson solution of the l2 bias over all pairs read so far, without
retention. Its state grows with what it has read; everything else obeys the contract of `Memory`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from miras_jax.memory.gate import Gate
from miras_jax.memory.memory import Parameters
from miras_jax.memory.segments import document_starts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionState:
    """The pairs read so far.

    Attributes:
      keys: `[B, S, H, K]`; values: `[B, S, H, V]`; S slots, of which `length` are filled.
      document: int32 `[B, S]`, which document a slot belongs to, counted from 0.
      length: int32 scalar, pairs held.
      last_document: int32 `[B]`; segment: int32 `[B]`, the last segment id, -1 before any.
      fixed: static; True writes into the S slots there are (the caller sees to it that they
        suffice), False appends slots for every call.
    """

    keys: jax.Array
    values: jax.Array
    document: jax.Array
    length: jax.Array
    last_document: jax.Array
    segment: jax.Array
    fixed: bool = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Attention:
    """Causal softmax attention, `y_t = sum_i softmax_i(q_t . k_i) v_i` over i <= t; as everywhere,
    the caller scales q.

    It has no gates and no chunks.
    """

    forms = ("recurrent", "chunked")
    exact = True

    @property
    def gates(self) -> dict[str, Gate]:
        return {}

    def init(self, key: jax.Array, *, heads: int, key_dim: int, value_dim: int) -> Parameters:
        """No parameters; keeps the sizes."""
        return Parameters({}, heads, key_dim, value_dim)

    def init_state(
        self,
        params: Parameters,
        *,
        batch: int,
        capacity: int | None = None,
        dtype: jnp.dtype = jnp.float32,
    ) -> AttentionState:
        """An empty cache. With a capacity its slots are allocated once and for all, so that
        decoding compiles once; reading more pairs than that gives NaN."""
        slots = capacity or 0
        return AttentionState(
            keys=jnp.zeros((batch, slots, params.heads, params.key_dim), dtype),
            values=jnp.zeros((batch, slots, params.heads, params.value_dim), dtype),
            document=jnp.zeros((batch, slots), jnp.int32),
            length=jnp.zeros((), jnp.int32),
            last_document=jnp.zeros(batch, jnp.int32),
            segment=jnp.full(batch, -1, jnp.int32),
            fixed=capacity is not None,
        )


def attend(
    memory: Attention,
    params: Parameters,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    state: AttentionState | None,
    segment_ids: jax.Array | None,
    form: str,
) -> tuple[jax.Array, AttentionState]:
    """Adds the pairs, then reads; shapes as in `memorize`. "recurrent" does so token by token."""
    batch, total = q.shape[:2]
    if state is None:
        state = memory.init_state(params, batch=batch, dtype=q.dtype)
    resets, segment = document_starts(segment_ids, state.segment)
    document = jnp.broadcast_to(state.last_document[:, None], (batch, total))
    if resets is not None:
        document = document + jnp.cumsum(resets.astype(jnp.int32), axis=1)
    if not state.fixed:
        state = _grow(state, total)
    state = dataclasses.replace(state, segment=segment, last_document=document[:, -1])
    if form == "recurrent":

        def body(state, token):
            state, y = _append_and_read(state, *(x[:, None] for x in token))
            return state, y[:, 0]

        tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, document))
        state, y = jax.lax.scan(body, state, tokens)
        return jnp.moveaxis(y, 0, 1), state
    state, y = _append_and_read(state, q, k, v, document)
    return y, state


def _grow(state: AttentionState, slots: int) -> AttentionState:
    def pad(x):
        return jnp.pad(x, [(0, 0), (0, slots)] + [(0, 0)] * (x.ndim - 2))

    return dataclasses.replace(
        state, keys=pad(state.keys), values=pad(state.values), document=pad(state.document)
    )


def _append_and_read(state, q, k, v, document):
    def put(cache, new):
        return jax.lax.dynamic_update_slice_in_dim(cache, new, state.length, axis=1)

    total = q.shape[1]
    keys, values = put(state.keys, k), put(state.values, v)
    documents = put(state.document, document)
    slot = jnp.arange(keys.shape[1])
    causal = slot[None, :] <= state.length + jnp.arange(total)[:, None]
    mask = causal & (documents[:, None, :] == document[:, :, None])
    logits = jnp.einsum("bthk,bshk->bhts", q, keys)
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf), axis=-1)
    y = jnp.einsum("bhts,bshv->bthv", weights, values)
    # The slots are overwritten when they do not suffice: say so rather than answer wrongly.
    y = jnp.where(state.length + total <= slot.size, y, jnp.nan)
    state = dataclasses.replace(
        state, keys=keys, values=values, document=documents, length=state.length + total
    )
    return state, y
