"""One long sequence over several devices, for memories that have the associative form.

What a device's tokens make of a state is an affine map (`memory/associative.py`), and reading them
finds it: from zero they leave its offset, and of a delta rule, from the identity and told zeros for
values, its matrix. The devices exchange their maps, at most K (K + V) numbers a head whatever the
length, and each then reads its tokens again, from the state that the parts before it leave. Nothing
of the length of the sequence moves, and every read is `memorize`, in whatever form is best on the
machine.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from miras_jax.memory.associative import (
    Dense,
    Diagonal,
    Maps,
    decays,
    states,
    why_not_associative,
)
from miras_jax.memory.head import Chunk
from miras_jax.memory.memorize import check_arguments, check_state, memorize
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
    dtype = _dtype(q, k, v)
    if state is None:
        state = memory.init_state(params, batch=q.shape[0], dtype=dtype)
    before, last = _segments(segment_ids, state.segment, axis)
    state = dataclasses.replace(state, segment=before)
    tokens = (q, k, v, gates)
    with jax.default_matmul_precision("highest"):
        part = _map_of_part(memory, params, *tokens, state, segment_ids)
        parts = jax.lax.all_gather(jax.tree.map(lambda x: x.astype(dtype), part), axis)
        firsts, weights = states(parts, jax.tree.map(lambda x: x.astype(dtype), state.weights))
    here = jax.lax.axis_index(axis)
    first = dataclasses.replace(state, weights=jax.tree.map(lambda x: x[here], firsts))
    y, _ = memorize(memory, params, *tokens, state=first, segment_ids=segment_ids)
    return y, dataclasses.replace(state, weights=weights, segment=last)


def _map_of_part(memory, params, q, k, v, gates, state, segment_ids) -> Maps:
    """The map from the state before this device's tokens to that after them; leaves `[B, H, ..]`.

    The backward pass reads once more, so that it holds what one read leaves at a time.
    """

    @partial(jax.checkpoint, prevent_cse=False)
    def end(params, q, k, v, gates, weights):
        begin = dataclasses.replace(state, weights=weights)
        options = {"state": begin, "segment_ids": segment_ids}
        return memorize(memory, params, q, k, v, gates, **options)[1].weights

    offsets = end(params, q, k, v, gates, jax.tree.map(jnp.zeros_like, state.weights))
    if not memory.bias.curvature:
        factors = _decays(memory, q, k, v, gates, document_starts(segment_ids, state.segment)[0])
        return {name: Diagonal(*factors[name], offset) for name, offset in offsets.items()}

    ((name, offset),) = offsets.items()
    size = offset.shape[-2]

    def blank(x):
        return jnp.zeros((*x.shape[:-1], size), x.dtype)

    per_value = {n for n, gate in memory.gates.items() if gate.per == "value"}
    gates = {n: blank(x) if n in per_value else x for n, x in gates.items()}
    weights = jax.tree.map(blank, params.weights)
    params = dataclasses.replace(params, weights=weights, value_dim=size)
    identity = jnp.broadcast_to(jnp.eye(size, dtype=offset.dtype), blank(offset).shape)
    matrix = end(params, q, k, blank(v), gates, {name: identity})[name]
    return {name: Dense(matrix, offset)}


def _decays(memory, q, k, v, gates, resets):
    """`decays` of rows and heads."""
    dtype = _dtype(q, k, v)
    gates = {name: x.astype(dtype) for name, x in gates.items()}

    def of_head(q, k, v, gates, reset):
        return decays(memory, Chunk(q, k, v, gates, reset, None))

    heads = jax.vmap(of_head, in_axes=(1, 1, 1, 1, None))
    return jax.vmap(heads)(*(x.astype(dtype) for x in (q, k, v)), gates, resets)


def _segments(segment_ids, last, axis):
    """The segment id before this device's first token, and after the whole sequence."""
    if segment_ids is None:
        return last, last
    ends = jax.lax.all_gather(segment_ids[:, -1].astype(jnp.int32), axis)
    return jnp.concatenate([last[None], ends[:-1]])[jax.lax.axis_index(axis)], ends[-1]
