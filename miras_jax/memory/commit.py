"""The end of a chunk: what the next chunk starts from.

For most memories nothing happens here. An algorithm that takes one step a chunk takes it, a lift
scales the chunk's steps, a retention gate projects.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from miras_jax.memory import layer as la
from miras_jax.memory.head import Chunk, Head
from miras_jax.memory.memory import Memory, Weights


def tally(optimizer: dict, gates: Mapping, counts: jax.Array) -> dict:
    """Adds the gates of C tokens to the running chunk's sums; `counts [C]` is 1 for the tokens of
    the document that the chunk ends with, 0 for others."""
    if not optimizer:
        return optimizer
    sums = {
        name: total + jnp.tensordot(counts, gates[name], axes=1)
        for name, total in optimizer["sums"].items()
    }
    return {**optimizer, "sums": sums, "count": optimizer["count"] + jnp.sum(counts)}


def commit(memory: Memory, initial: Weights, start: Weights, head: Head, tokens: Chunk) -> Head:
    """The state that the next chunk starts from.

    Args:
      memory: the four choices.
      initial: A_0 by layer.
      start: A at the start of the chunk, or of the document that began inside it.
      head: the state after the chunk's last token, its gates tallied.
      tokens: the chunk.
    """
    layers = memory.written(tokens.k.shape[-1], tokens.v.shape[-1])
    retention, algorithm = memory.retention, memory.algorithm
    weights, optimizer = dict(head.weights), head.optimizer
    if algorithm.lift is not None:
        lift = tokens.gates["lift"][-1:, None]
        weights = {n: start[n] + lift * (weights[n] - start[n]) for n in layers}
    if algorithm.steps_a_chunk:
        sums, live = optimizer["sums"], jnp.ones((1, 1), bool)
        means = {name: total / jnp.maximum(optimizer["count"], 1.0) for name, total in sums.items()}
        gradient = {n: start[n] - weights[n] for n in layers}
        step, state = algorithm.update(gradient, optimizer["state"], start, means)
        whole = {name: total[None] for name, total in sums.items()}
        for name, layer in layers.items():
            gates = la.layer_gates(layer, "", retention.gates, whole, live, start[name].dtype)
            anchor = initial[name] if retention.anchor == "initial" else 0.0
            kept = start[name]
            if retention.gates:
                kept = anchor + gates.decayed(start[name] - anchor)
            weights[name] = kept + step[name]
        zeros = jax.tree.map(jnp.zeros_like, sums)
        optimizer = {"state": state, "sums": zeros, "count": jnp.zeros_like(optimizer["count"])}
    weights = {
        n: retention.commit(weights[n], start[n], initial[n], layer) for n, layer in layers.items()
    }
    return head._replace(weights=weights, optimizer=optimizer)
