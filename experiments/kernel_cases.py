"""The functions that `kernels_pallas/cases.py` lists, as the compilers get them.

    python -m kernels_pallas.aot --backend tpu --builder experiments/kernel_cases.py:build \
        "tpu gla forward width=64 chunk=64 bfloat16@v5e"

compiles one and prints its figures. Sizes are those of training and of serving, so that arrays lie
in HBM: a compiler keeps small ones on the chip. Nothing is allocated, the shapes are enough.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import miras_jax as mj
from kernels_pallas import dispatch
from kernels_pallas.cases import Case, find

BATCH, HEADS, TOKENS = 8, 16, 4096
SERVED = 64
"""Rows that are decoded at once."""


def build(name: str) -> tuple[Callable, tuple]:
    """The function of a case and the shapes of its arguments: parameters, inputs by name, state,
    segment ids (None where there are none)."""
    case = find(name)
    function = {"forward": _forward, "backward": _backward, "decode": _decode}[case.what](case)
    return function, arguments(case)


def memory_of(case: Case):
    """The row's memory, its chunks as long as the case says."""
    memory = mj.zoo.get(case.row)
    return memory if memory.exact else dataclasses.replace(memory, chunk_size=case.chunk_size)


def arguments(case: Case) -> tuple:
    """Shapes of parameters, inputs, state and segment ids."""
    memory = memory_of(case)
    rows, tokens = (SERVED, 1) if case.what == "decode" else (BATCH, TOKENS)
    shape, dtype = (rows, tokens, HEADS), jnp.dtype(case.dtype)
    inputs = {x: jax.ShapeDtypeStruct((*shape, case.width), dtype) for x in "qkv"}
    for gate_name, gate in memory.gates.items():
        kind = dtype if gate.is_input else jnp.float32
        inputs[gate_name] = jax.ShapeDtypeStruct(gate.shape(shape, case.width, case.width), kind)
    sizes = {"heads": HEADS, "key_dim": case.width, "value_dim": case.width}
    params = jax.eval_shape(lambda: memory.init(jax.random.key(0), **sizes))
    state = segment_ids = None
    if case.packed or case.what == "decode":
        state = jax.eval_shape(lambda params: memory.init_state(params, batch=rows), params)
    if case.packed:
        segment_ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    return params, inputs, state, segment_ids


def ideal_bytes(case: Case) -> int:
    """Bytes of main memory that the case cannot do without: its arguments read once and its
    results written once. A gradient reads the inputs again, and y and its cotangent are written
    and read; states saved between its passes do not count, nor does padding."""
    params, inputs, state, segment_ids = arguments(case)
    rows, y = inputs["q"].shape[0], tree_bytes(inputs["v"])
    memory = memory_of(case)
    after = jax.eval_shape(lambda params: memory.init_state(params, batch=rows), params)
    given = tree_bytes((params, inputs, state, segment_ids))
    if case.what != "backward":
        return given + y + tree_bytes(after)
    found = tree_bytes((params, inputs)) + (tree_bytes(after) if case.packed else 0)
    return given + tree_bytes((params, inputs, segment_ids)) + 2 * y + found


def tree_bytes(tree) -> int:
    """Bytes of all leaves."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _read(case: Case, params, inputs, state, segment_ids) -> tuple[jax.Array, Any]:
    gates = {name: x for name, x in inputs.items() if name not in "qkv"}
    qkv = (inputs[name] for name in "qkv")
    with dispatch.override(platform=case.backend):
        return mj.memorize(
            memory_of(case),
            params,
            *qkv,
            gates,
            state=state,
            segment_ids=segment_ids,
            form=f"pallas_{case.backend}",
        )


def _forward(case: Case) -> Callable:
    return functools.partial(_read, case)


def _backward(case: Case) -> Callable:
    """The gradient of something that depends on y and on the state after it."""

    def loss(params, inputs, weights, state, segment_ids):
        if state is not None:
            state = dataclasses.replace(state, weights=weights)
        y, after = _read(case, params, inputs, state, segment_ids)
        ends = jax.tree.leaves((y, after.weights, after.momentum))
        return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in ends)

    def gradient(params, inputs, state, segment_ids):
        weights = None if state is None else state.weights
        wanted = (0, 1) if state is None else (0, 1, 2)
        return jax.grad(loss, wanted)(params, inputs, weights, state, segment_ids)

    return gradient


def _decode(case: Case) -> Callable:
    return jax.jit(functools.partial(_read, case), donate_argnums=2)
