"""How a memory reads on a mesh: rows over `data` and `fsdp`, heads over `tensor`, and tokens.

Over the axis `sequence` the residual stream lies in contiguous parts. A memory reads them in one of
two ways:

- A linear memory with an associative form reads its tokens where they are, and the devices exchange
  what their parts make of a state, K (K + V) numbers a head whatever the length
  (`memory/sharded.py`).
- Any other memory needs all tokens of a head in turn: devices exchange tokens for heads, so that
  each has all tokens of 1 / sequence of the heads, and back, as in DeepSpeed-Ulysses (Jacobs et
  al., arXiv 2309.14509). This takes heads that tensor x sequence divides, and sends q, k, v, the
  gates and y.

All exchanges are written out in `shard_map`: what XLA's partitioner makes of them is checked by no
one (it has returned wrong gradients where it was left to reshard activations).
"""

import dataclasses
from typing import Literal

import jax
from jax.sharding import PartitionSpec as P

from miras_jax.memory import (
    Attention,
    AttentionState,
    Diagnostics,
    Memory,
    Parameters,
    State,
    memorize,
    memorize_sharded,
    recall,
)
from miras_jax.memory.associative import why_not_associative
from miras_jax.memory.window import SlidingWindowAttention, WindowState
from miras_jax.nn import partition
from miras_jax.nn.config import ModelConfig

AnyMemory = Memory | Attention | SlidingWindowAttention
AnyState = State | AttentionState | WindowState


def keeps_tokens(memory: AnyMemory) -> bool:
    """Whether a memory reads a sequence over several devices with the tokens where they are."""
    return isinstance(memory, Memory) and not why_not_associative(memory)


def needs_heads(config: ModelConfig) -> bool:
    """Whether a model has a memory that exchanges tokens for heads: tensor x sequence must divide
    its heads."""
    return config.block != "memory" or not keeps_tokens(config.build_memory())


def way(
    memory: AnyMemory, heads: int, total: int, diagnose: bool = False
) -> Literal["tokens", "heads", "whole"]:
    """How a memory reads `total` tokens on the mesh in force.

    "tokens" and "heads" are the two ways above. "heads" is also that of few tokens that the axis
    does not divide, as in generation, and of an axis of one device. Where tensor x sequence does
    not divide the heads, each device along the axis reads the "whole". Diagnostics take the tokens
    one after the other.
    """
    if partition.sequence(total) and keeps_tokens(memory) and not diagnose:
        return "tokens"
    return "whole" if heads % partition.axis_size("tensor", "sequence") else "heads"


def _head_axes(how):
    """Over which axes heads lie: in this order devices that exchange tokens for heads differ in
    `sequence` only. An axis of one device is named too, or gradients would be summed over it."""
    names = ("tensor", "sequence") if how == "heads" else ("tensor",)
    return tuple(name for name in names if name in jax.sharding.get_abstract_mesh().shape)


def read(
    memory: AnyMemory,
    params: Parameters,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gates: dict[str, jax.Array],
    state: AnyState | None,
    segment_ids: jax.Array | None,
    *,
    diagnose: bool = False,
) -> tuple[jax.Array, AnyState, Diagnostics | None]:
    """`memorize` of whole arrays on the mesh in force, or without one.

    Args:
      memory, params, q, k, v, gates, state, segment_ids: as in `memorize`.
      diagnose: also returns the diagnostics, of a memory with an inner loop.

    Returns:
      y `[B, T, H, V]`, the state after the last token, and the diagnostics or None.
    """
    total = q.shape[1]
    axis, how = partition.sequence(total), way(memory, q.shape[2], total, diagnose)

    def run(params, tokens, state, segment_ids):
        params = dataclasses.replace(params, heads=tokens[0].shape[2])
        options = {"state": state, "segment_ids": segment_ids, "diagnostics": diagnose}
        y, after, *said = memorize(memory, params, *tokens, **options)
        return y, after, said[0] if diagnose else None

    def run_part(params, tokens, state, segment_ids):
        params = dataclasses.replace(params, heads=tokens[0].shape[2])
        options = {"axis": axis, "state": state, "segment_ids": segment_ids}
        return (*memorize_sharded(memory, params, *tokens, **options), None)

    def run_heads(params, tokens, state, segment_ids):
        tokens = jax.tree.map(lambda x: _exchange(x, axis, 2, 1), tokens)
        y, after, said = run(params, tokens, state, segment_ids)
        return _exchange(y, axis, 1, 2), after, said

    args = (params, (q, k, v, gates), state, segment_ids)
    if jax.sharding.get_abstract_mesh().empty:
        return run(*args)
    _, after, _ = jax.eval_shape(run, *args)
    heads = _head_axes(how)
    whole = P(partition.BATCH, None, heads)
    body, tokens, ids = run, whole, P(partition.BATCH)
    if how == "tokens":
        body, tokens, ids = run_part, P(partition.BATCH, axis, heads), P(partition.BATCH, axis)
    elif how == "heads" and axis:
        body, tokens = run_heads, P(partition.BATCH, axis, "tensor")
    in_specs = (P(heads), tokens, state_specs(state, heads), ids)
    out_specs = (tokens, state_specs(after, heads), whole)
    return jax.shard_map(body, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*args)


def recall_on_mesh(memory: Memory, params: Parameters, state: State, q: jax.Array) -> jax.Array:
    """`recall` of whole arrays on the mesh in force, or without one: q `[B, T, H, K]` to
    `[B, T, H, V]`. Heads lie as where the memory reads, so that its state stays where it is."""
    axis, how = partition.sequence(q.shape[1]), way(memory, *q.shape[2:0:-1])

    def run(params, state, q):
        return recall(memory, dataclasses.replace(params, heads=q.shape[2]), state, q)

    def run_heads(params, state, q):
        return _exchange(run(params, state, _exchange(q, axis, 2, 1)), axis, 1, 2)

    if jax.sharding.get_abstract_mesh().empty:
        return run(params, state, q)
    heads = _head_axes(how)
    body, tokens = run, P(partition.BATCH, axis, "tensor" if axis else heads)
    if how == "heads" and axis:
        body = run_heads
    specs = (P(heads), state_specs(state, heads), tokens)
    mapped = jax.shard_map(body, in_specs=specs, out_specs=tokens, check_vma=False)
    return mapped(params, state, q)


def state_specs(state: AnyState | None, heads: str | tuple[str, ...]):
    """Rows over the batch axes, heads over the axes named."""
    if state is None:
        return None
    rows = P(partition.BATCH)
    if isinstance(state, AttentionState):
        pairs = P(partition.BATCH, None, heads)
        return dataclasses.replace(
            state,
            keys=pairs,
            values=pairs,
            document=rows,
            length=P(),
            last_document=rows,
            segment=rows,
        )
    held = P(partition.BATCH, heads)
    return jax.tree.map(lambda x: held if x.ndim > 1 else rows, state)


def _exchange(x, axis, split, concat):
    """Each device's part of the dimension `concat` for its part of the dimension `split`."""
    return jax.lax.all_to_all(x, axis, split, concat, tiled=True)
