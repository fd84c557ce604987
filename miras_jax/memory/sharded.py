"""One long sequence over several devices, for memories that have the associative form.

Each device composes the maps of its own chunks (`memory/associative.py`), the devices exchange what
their parts make of a state, K (K + V) numbers a head whatever the length, and each then reads its
tokens from the state that the parts before it leave. Nothing of the length of the sequence moves.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from miras_jax.memory.associative import associative, why_not_associative
from miras_jax.memory.head import Chunk, Head
from miras_jax.memory.memorize import check_arguments, check_state
from miras_jax.memory.memory import Memory, Parameters, State
from miras_jax.memory.segments import document_starts


def memorize_sharded(
    memory: Memory,
    params: Parameters,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gates: Mapping[str, jax.Array] | None = None,
    *,
    axis: str,
    state: State | None = None,
    segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, State]:
    """`memorize` inside `jax.shard_map`, every device with its contiguous part of the sequence.

    The parts lie in the order of the axis and are of the same length T, any T >= 1. Differentiable
    in everything. Call it under `check_vma=False`: the returned state is the same on all devices,
    which the types of the mesh's axes do not see.

    Args:
      memory, params: as in `memorize`; here of the heads that this device has.
      q, k, v, gates: of this device's T tokens.
      axis: the mesh axis over which the sequence lies.
      state: what was read before the whole sequence, the same on all devices; None begins anew.
      segment_ids: of this device's tokens; a document may go on from one device to the next.

    Returns:
      y `[B, T, H, V]` of this device's tokens, and the state after the whole sequence, the same on
      all devices.

    Raises:
      ValueError: a shape or a gate that does not fit.
      NotImplementedError: a memory without an associative form.
    """
    _check_memory(memory)
    gates = dict(gates or {})
    check_arguments(memory, params, q, k, v, gates, segment_ids)
    check_state(memory, params, q.shape[0], state)
    return _memorize_sharded(memory, axis, params, q, k, v, gates, state, segment_ids)


def memorize_on_mesh(
    memory: Memory,
    params: Parameters,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gates: Mapping[str, jax.Array] | None = None,
    *,
    state: State | None = None,
    segment_ids: jax.Array | None = None,
    rows: tuple[str, ...] = ("data", "fsdp"),
    heads: str = "tensor",
    sequence: str = "sequence",
) -> tuple[jax.Array, State]:
    """`memorize` of whole arrays on the mesh in force (`jax.set_mesh`), its tokens laid over one of
    its axes.

    Args:
      memory, params, q, k, v, gates, state, segment_ids: as in `memorize`.
      rows: mesh axes for the rows of the batch.
      heads: mesh axis for the heads.
      sequence: mesh axis for the tokens. Of the axes named here only this one must exist.

    Returns:
      as `memorize`: y `[B, T, H, V]`, laid like q, and the state, laid over rows and heads.

    Raises:
      ValueError: no mesh, a mesh without the sequence axis, or sizes that the axes do not divide;
        and what does not fit in `memorize`.
      NotImplementedError: a memory without an associative form.
    """
    _check_memory(memory)
    gates = dict(gates or {})
    check_arguments(memory, params, q, k, v, gates, segment_ids)
    check_state(memory, params, q.shape[0], state)
    mesh = jax.sharding.get_abstract_mesh()
    if sequence not in mesh.axis_names:
        raise ValueError(
            f"memorize_on_mesh lays the tokens over the mesh axis {sequence!r}, and the mesh in "
            f"force has the axes {mesh.axis_names}: make one with it and enter jax.set_mesh(mesh)."
        )
    rows = tuple(name for name in rows if name in mesh.axis_names)
    heads = heads if heads in mesh.axis_names else None
    names = {"rows": rows, "tokens": (sequence,), "heads": (heads,) if heads else ()}
    for (what, axes), size in zip(names.items(), q.shape[:3], strict=True):
        parts = 1
        for name in axes:
            parts *= mesh.shape[name]
        if size % parts:
            raise ValueError(
                f"The mesh cuts the {what} in {parts}, which does not divide {size}: choose sizes "
                "that fit, or for a few tokens after a long sequence `memorize` with its state."
            )

    def run(params, q, k, v, gates, state, segment_ids):
        params = dataclasses.replace(params, heads=q.shape[2])
        options = {"axis": sequence, "state": state, "segment_ids": segment_ids}
        return memorize_sharded(memory, params, q, k, v, gates, **options)

    tokens = P(rows, sequence, heads)
    if state is None:
        state = memory.init_state(params, batch=q.shape[0], dtype=_dtype(q, k, v))
    held = jax.tree.map(lambda x: P(rows, heads) if x.ndim > 1 else P(rows), state)
    in_specs = (P(heads), tokens, tokens, tokens, tokens, held, P(rows, sequence))
    mapped = jax.shard_map(run, in_specs=in_specs, out_specs=(tokens, held), check_vma=False)
    return mapped(params, q, k, v, gates, state, segment_ids)


def _check_memory(memory):
    """Refuses what has no associative form."""
    if not isinstance(memory, Memory):
        raise NotImplementedError(
            f"A sequence over several devices needs a memory with an associative form, which "
            f"{type(memory).__name__} has not: it holds the tokens themselves."
        )
    if reason := why_not_associative(memory):
        raise NotImplementedError(
            "A sequence over several devices needs a memory with an associative form; this one "
            f"has {', '.join(memory.forms)}, because {reason}."
        )


def _dtype(q, k, v):
    return jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)


@partial(jax.jit, static_argnames=("memory", "axis"))
def _memorize_sharded(memory, axis, params, q, k, v, gates, state, segment_ids):
    out_dtype, dtype = v.dtype, _dtype(q, k, v)
    q, k, v, gates, state = jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        (q, k, v, gates, state),
    )
    if state is None:
        state = memory.init_state(params, batch=q.shape[0], dtype=dtype)
    reset, segment = _document_starts(segment_ids, state.segment, axis)

    def run_head(initial, weights, q, k, v, gates, reset):
        tokens = Chunk(q, k, v, gates, reset, None)
        head, y, _ = associative(memory, initial, Head(weights, {}, {}, {}), tokens, axis=axis)
        return head.weights, y

    heads = jax.vmap(run_head, in_axes=(0, 0, 1, 1, 1, 1, None), out_axes=(0, 1))
    rows = jax.vmap(heads, in_axes=(None,) + (0,) * 6)
    with jax.default_matmul_precision("highest"):
        initial = memory.initial(params, dtype)
        weights, y = rows(initial, state.weights, q, k, v, gates, reset)
    return y.astype(out_dtype), dataclasses.replace(state, weights=weights, segment=segment)


def _document_starts(segment_ids, last, axis):
    """`document_starts` with the token before this device's first on another device."""
    if segment_ids is None:
        return None, last
    ends = jax.lax.all_gather(segment_ids[:, -1].astype(jnp.int32), axis)
    before = jnp.concatenate([last[None], ends[:-1]])[jax.lax.axis_index(axis)]
    return document_starts(segment_ids, before)[0], ends[-1]
