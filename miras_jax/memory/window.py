"""Sliding-window attention: softmax attention that keeps the last pairs only.

The Nadaraya-Watson solution of the l2 bias over the last `window` pairs. Its state is of constant
size, and reading T tokens takes time linear in T.
"""

import dataclasses

import jax
import jax.numpy as jnp

from miras_jax.memory.gate import Gate
from miras_jax.memory.memory import Parameters
from miras_jax.memory.segments import document_starts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowState:
    """The last W pairs, W the window.

    Attributes:
      keys: `[B, H, W, K]`; values: `[B, H, W, V]`; the oldest first.
      length: int32 `[B]`, how many of the last slots hold pairs of the running document.
      segment: int32 `[B]`, the last segment id, -1 before any.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array
    segment: jax.Array


@dataclasses.dataclass(frozen=True)
class SlidingWindowAttention:
    """Causal softmax attention over the last pairs, `y_t = sum_i softmax_i(q_t . k_i) v_i` over
    t - window < i <= t; as everywhere, the caller scales q. It has no gates.

    Attributes:
      window: pairs that a token sees, its own included.
      persistent: learned pairs that every token sees besides, of no document and no position
        (Sukhbaatar et al., arXiv 1907.01470; the persistent memory of Titans, section 3.3).
      chunk_size: queries that are read at once; changes time and memory, not the result.

    Raises:
      ValueError: a number that is too small.
    """

    window: int = 2048
    persistent: int = 0
    chunk_size: int = 256

    forms = ("recurrent", "chunked")
    exact = True

    def __post_init__(self):
        for name, least in (("window", 1), ("persistent", 0), ("chunk_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def gates(self) -> dict[str, Gate]:
        return {}

    def init(self, key: jax.Array, *, heads: int, key_dim: int, value_dim: int) -> Parameters:
        """Draws the persistent pairs, `persistent_keys [H, P, K]` and `persistent_values
        [H, P, V]`, of the variance 1 that projections of normalised tokens have."""
        weights = {}
        if self.persistent:
            widths = {"persistent_keys": key_dim, "persistent_values": value_dim}
            keys = dict(zip(widths, jax.random.split(key), strict=True))
            weights = {
                name: jax.random.normal(keys[name], (heads, self.persistent, width), jnp.float32)
                for name, width in widths.items()
            }
        return Parameters(weights, heads, key_dim, value_dim)

    def init_state(
        self, params: Parameters, *, batch: int, dtype: jnp.dtype = jnp.float32
    ) -> WindowState:
        """An empty window."""
        slots = (batch, params.heads, self.window)
        return WindowState(
            keys=jnp.zeros((*slots, params.key_dim), dtype),
            values=jnp.zeros((*slots, params.value_dim), dtype),
            length=jnp.zeros(batch, jnp.int32),
            segment=jnp.full(batch, -1, jnp.int32),
        )


def attend_window(
    memory: SlidingWindowAttention,
    params: Parameters,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    state: WindowState | None,
    segment_ids: jax.Array | None,
    form: str,
) -> tuple[jax.Array, WindowState]:
    """Adds the pairs and reads; shapes as in `memorize`. "recurrent" does so token by token."""
    last = jnp.full(q.shape[0], -1, jnp.int32) if state is None else state.segment
    resets, segment = document_starts(segment_ids, last)
    if form == "recurrent":
        if state is None:
            state = memory.init_state(params, batch=q.shape[0], dtype=q.dtype)

        def body(state, token):
            y, state = _advance(memory, params, state, *jax.tree.map(lambda x: x[:, None], token))
            return state, y[:, 0]

        tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, resets))
        state, y = jax.lax.scan(body, state, tokens)
        y = jnp.moveaxis(y, 0, 1)
    else:
        y, state = _advance(memory, params, state, q, k, v, resets)
    return y, dataclasses.replace(state, segment=segment)


def _advance(memory, params, state, q, k, v, resets):
    """The tokens in blocks of queries, each against the slots that its window can reach.

    Slots are the state's, if there is one, and then the tokens'; without a state no slot is empty.
    """
    batch, total = q.shape[:2]
    window, size = memory.window, min(memory.chunk_size, total)
    blocks = -(-total // size)
    past = 0 if state is None else window

    def slots(x, before):
        x = jnp.pad(jnp.moveaxis(x, 1, 2), [(0, 0), (0, 0), (0, blocks * size - total), (0, 0)])
        return x if before is None else jnp.concatenate([before, x], axis=2)

    queries = slots(q, None)
    keys, values = slots(k, state and state.keys), slots(v, state and state.values)
    # The first slot that a token sees: its document's first, or the window's.
    slot = past + jnp.arange(blocks * size, dtype=jnp.int32)
    first = jnp.zeros(batch, jnp.int32) if state is None else past - state.length
    first = jnp.broadcast_to(first[:, None], (batch, blocks * size))
    if resets is not None:
        begins = jnp.pad(resets, [(0, 0), (0, blocks * size - total)])
        first = jax.lax.cummax(jnp.where(begins, slot, first), axis=1)
    first = jnp.maximum(first, slot - window + 1)
    span = min(keys.shape[2], window + size)

    def block(index):
        def rows(x, axis):
            return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)

        start = jnp.maximum(past + (index + 1) * size - span, 0)
        near = (jax.lax.dynamic_slice_in_dim(x, start, span, axis=2) for x in (keys, values))
        seen = start + jnp.arange(span)
        mask = (rows(first, 1)[..., None] <= seen) & (seen <= rows(slot, 0)[:, None])
        return softmax_read(params, rows(queries, 2), *near, mask)

    if blocks == 1:
        y = block(0)
    else:
        # Block after block, and again in the backward pass, so that the weights of only one
        # block are held at a time.
        _, y = jax.lax.scan(
            lambda _, index: (None, jax.checkpoint(block, prevent_cse=False)(index)),
            None,
            jnp.arange(blocks),
        )
        y = jnp.moveaxis(y, 0, 2).reshape(*queries.shape[:3], -1)
    y = jnp.moveaxis(y, 2, 1)[:, :total]

    def last(x):
        x = x[:, :, : past + total][:, :, -window:]
        return jnp.pad(x, [(0, 0), (0, 0), (window - x.shape[2], 0), (0, 0)])

    length = past + total - first[:, total - 1]
    segment = jnp.full(batch, -1, jnp.int32) if state is None else state.segment
    return y, WindowState(last(keys), last(values), length, segment)


def softmax_read(
    params: Parameters, q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array
) -> jax.Array:
    """Softmax attention of q `[B, H, T, K]` over the persistent pairs of `params` and the given
    ones, `[B, H, S, K]` and `[B, H, S, V]`, where the mask, bool `[B, T, S]`, is true."""
    logits = jnp.einsum("bhtk,bhsk->bhts", q, keys)
    logits = jnp.where(mask[:, None], logits, -jnp.inf)
    if not params.weights:
        return jnp.einsum("bhts,bhsv->bhtv", jax.nn.softmax(logits, axis=-1), values)
    own_keys = params.weights["persistent_keys"].astype(q.dtype)
    own_values = params.weights["persistent_values"].astype(q.dtype)
    own = jnp.einsum("bhtk,hpk->bhtp", q, own_keys)
    weights = jax.nn.softmax(jnp.concatenate([own, logits], axis=-1), axis=-1)
    own, weights = jnp.split(weights, [own_keys.shape[1]], axis=-1)
    return jnp.einsum("bhtp,hpv->bhtv", own, own_values) + jnp.einsum(
        "bhts,bhsv->bhtv", weights, values
    )
