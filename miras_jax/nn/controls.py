"""Controls: one thing of what a memory does is broken, to see whether it counts.

A model that does as well with a control as without does not owe its result to what its memory
learns while it reads. Train with a control from the start (`model.control`), or put one on a
trained model (`nn.reconfigured(model, control=...)`). Each acts on what the layer hands to its
memory, or on where the memory is read, so that every row of the zoo takes it.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from miras_jax.memory import DotProduct, Memory, NormalEquations

Control = Literal["ascent", "frozen", "keys_as_queries", "shuffled_values", "chunk_start_reads"]

# What scales a token's writes, beside its steps ("step", "step_2", ...). Where there is neither a
# step nor the first of these, the values are written whole.
WRITES = ("write", "replacement", "erase")
DECAYS = ("log_decay", "log_value_decay")


def controlled(
    control: Control | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gates: dict[str, jax.Array],
    positions: jax.Array,
    layer: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """What the memory gets instead of q, k, v and its gates, each `[B, T, H, ...]`.

    - ascent: every write with the opposite sign: a step up the gradient of the bias.
    - frozen: no write and no decay: the memory stays what it is at the start of a document.
    - keys_as_queries: q is k: what is read is what the token has just written.
    - shuffled_values: each key learns the value of a token drawn at random among those that its
      document has had so far in the call, itself included, anew for every text and layer. Read
      token by token, each draws itself.
    - chunk_start_reads: nothing here; see `controlled_memory`.

    Args:
      control: which one; None for none.
      q, k, v, gates: what the layer has made of its tokens.
      positions: int `[B, T]`, of the tokens in their documents.
      layer: int, the index of the layer.
    """
    if control == "keys_as_queries":
        q = k
    elif control == "shuffled_values":
        source = _drawn(v, positions, layer)
        v = _take(v, source)
        gates = gates | {n: _take(x, source) for n, x in gates.items() if n.startswith("value_")}
    elif control in ("ascent", "frozen"):
        factor = -1 if control == "ascent" else 0
        writes = [n for n in gates if n in WRITES or n.startswith("step")]
        if not set(writes) & {"step", "write"}:
            v = factor * v
        decays = [n for n in DECAYS if n in gates] if control == "frozen" else []
        gates = gates | {n: factor * gates[n] for n in (*writes, *decays)}
    return q, k, v, gates


def controlled_memory(control: Control | None, memory):
    """The memory with every token reading the start of its chunk, under `chunk_start_reads`; what
    is written stays as it is."""
    if control != "chunk_start_reads":
        return memory
    gradient = "exact" if memory.exact else memory.gradient
    return dataclasses.replace(memory, read="chunk", gradient=gradient)


def check_control(control: Control | None, name: str, memory) -> None:
    """Refuses what a memory cannot take.

    Raises:
      ValueError: says which control, and why.
    """
    if control not in (None, *get_args(Control)):
        known = ", ".join(get_args(Control))
        raise ValueError(f"model.control must be one of {known}, got {control!r}.")
    if control in (None, "keys_as_queries", "shuffled_values"):
        return
    if not isinstance(memory, Memory):
        raise ValueError(
            f"model.control={control!r} is for memories that learn, and {name} keeps the tokens "
            "themselves: take keys_as_queries or shuffled_values, or another model."
        )
    if control == "chunk_start_reads":
        if controlled_memory(control, memory) == memory:
            raise ValueError(
                f"{name} reads the start of its chunks already: {control!r} is no change."
            )
        return
    if not {"step", "write", "replacement"} & set(memory.gates) and not isinstance(
        memory.bias, DotProduct
    ):
        raise ValueError(
            f"model.control={control!r} scales the steps that {name} takes, and it has no gate for "
            "them: give its algorithm a step."
        )
    if control == "ascent" and isinstance(memory.architecture, NormalEquations):
        raise ValueError(
            f"{name} takes no steps, it solves for the best memory, which up the gradient is none: "
            "take another control."
        )


def _drawn(v: jax.Array, positions: jax.Array, layer: jax.Array) -> jax.Array:
    """For each token `[B, T]` the index of one of its document's tokens up to itself."""
    index = jnp.arange(v.shape[1])
    # Each token's own value decides: causal, and no order that a model could learn by heart.
    bits = jax.lax.bitcast_convert_type(jnp.sum(v, axis=(2, 3), dtype=jnp.float32), jnp.uint32)
    key = jax.random.fold_in(jax.random.key(0), layer)
    each = jax.vmap(jax.vmap(lambda bits: jax.random.uniform(jax.random.fold_in(key, bits))))
    back = jnp.minimum(positions, index) + 1
    return index - (each(bits) * back).astype(jnp.int32)


def _take(x: jax.Array, source: jax.Array) -> jax.Array:
    """x `[B, T, ...]` at the tokens `source [B, T]`."""
    return jnp.take_along_axis(x, source.reshape(*source.shape, *[1] * (x.ndim - 2)), axis=1)
