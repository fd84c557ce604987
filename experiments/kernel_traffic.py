"""What an op must move and multiply, and how long a device needs for that at least.

Bytes are those of the kernels' operands and results in main memory, each counted once: q, k, v and
gates are read once and y is written once; a gradient reads them again, with the states that the
forward pass saved. A test holds the counts against the arrays of the compiled calls.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from kernel_ops import Op

import miras_jax as mj
from kernels_pallas import read
from kernels_pallas.linear import linear_tokens
from miras_jax.devices import CHIPS, Chip
from miras_jax.memory import flops
from miras_jax.memory.memory import Memory

DEVICES = {name: CHIPS[name] for name in ("a100-80gb", "h100", "h200", "v5e", "v5p", "v6e")}
"""That bounds are written for."""


def memory_of(op: Op) -> Memory:
    """The row's memory, its chunks as long as the op says."""
    memory = mj.zoo.get(op.row)
    return memory if memory.exact else dataclasses.replace(memory, chunk_size=op.chunk_size)


def shapes(op: Op) -> tuple[Any, dict]:
    """Shapes of parameters and inputs."""
    memory, tokens = memory_of(op), (op.batch, op.tokens, op.heads)
    inputs = {x: jax.ShapeDtypeStruct((*tokens, op.width), jnp.dtype(op.dtype)) for x in "qkv"}
    for name, gate in memory.gates.items():
        kind = op.dtype if gate.is_input else "float32"
        inputs[name] = jax.ShapeDtypeStruct(gate.shape(tokens, op.width, op.width), jnp.dtype(kind))
    sizes = {"heads": op.heads, "key_dim": op.width, "value_dim": op.width}
    return jax.eval_shape(lambda: memory.init(jax.random.key(0), **sizes)), inputs


def size(tree: Any) -> int:
    """Bytes of all leaves."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def traffic(op: Op, backward: bool = False, backend: str = "tpu") -> dict[str, int]:
    """Bytes that an op's kernels read and write, by what they are.

    Args:
      op: T a multiple of the chunks that a saved state stands for.
      backward: of forward and backward pass together, instead of the forward pass.
      backend: "tpu" or "gpu", which takes shorter chunks of a linear memory and keeps the states
        inside a group in main memory. Where the GPU's backward pass is pure JAX (the states of deep
        memories), counted is what a kernel would move.
    """
    memory, (params, inputs) = memory_of(op), shapes(op)
    state = jax.eval_shape(lambda params: memory.init_state(params, batch=op.batch), params)
    gates = {name: x for name, x in inputs.items() if name not in "qkv"}
    qkv = [inputs[name] for name in "qkv"]
    if memory.exact:
        carry, consts, chunk = state.weights, {}, read.linear_chunk(backend, op.tokens)
        tokens = jax.eval_shape(lambda *args: linear_tokens(memory, *args), *qkv, gates)
    else:
        carry, chunk = (state.weights, state.momentum), op.chunk_size
        consts = jax.eval_shape(memory.initial, params)
        tokens = {**dict(zip("qkv", qkv, strict=True)), **gates}
        tokens = {
            name: jax.ShapeDtypeStruct(x.shape if len(x.shape) == 4 else (*x.shape, 1), x.dtype)
            for name, x in tokens.items()
        }
    group = read.group_size(carry, tokens, chunk)
    while not memory.exact and op.tokens // chunk % group:
        group //= 2
    if op.tokens % (chunk * group):
        raise ValueError(
            f"{op.name}: T must be a multiple of {chunk * group} tokens, {group} chunks."
        )
    moved = {"tokens": size(tokens), "y": size(inputs["v"]), "state": 2 * size(carry)}
    moved["initial memory"] = size(consts)
    if not backward:
        return moved
    groups = op.tokens // (chunk * group)
    moved = {name: 2 * count for name, count in moved.items()}
    moved["gradients"] = size(tokens) + op.batch * size(consts)
    moved["saved states"] = 2 * groups * size(carry)
    if backend == "gpu" and memory.exact and group > 1:
        moved["states in a group"] = group * size(carry)
    return moved


def work(op: Op, backward: bool = False, backend: str = "tpu") -> float:
    """FLOPs of an op's products; a backward pass counts twice the forward pass, and what it
    computes again counts nothing."""
    memory = memory_of(op)
    if memory.exact:  # the kernel's chunks, not those of the chunked form
        memory = dataclasses.replace(memory, chunk_size=read.linear_chunk(backend, op.tokens))
    per_token = flops.per_token(memory, op.width, op.width, op.tokens)
    return per_token * op.batch * op.tokens * op.heads * (3 if backward else 1)


def bound(op: Op, on: Chip, backward: bool = False, backend: str = "tpu") -> float:
    """The least milliseconds: of the products or of the bytes, whichever take longer."""
    moved = sum(traffic(op, backward, backend).values())
    return 1e3 * max(work(op, backward, backend) / on.flops, moved / on.bandwidth)
