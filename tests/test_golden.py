"""Outputs, final states and every gradient against oracle data computed by other people's code.

Tolerances are relative to the largest entry of an array: 1e-10 in float64 and 1e-5 in float32, a
hundred rounding errors of sums over 48 tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import miras_jax as mj
from miras_jax.memory import L2Decay, Memory, Momentum
from tests.cases import close

CASES = [
    f"{family}{suffix}"
    for family in ("linear_attention", "deltanet", "gated_deltanet")
    for suffix in ("", "_2", "_packed")
]
DTYPES = {"float64": (jnp.float64, 1e-10), "float32": (jnp.float32, 1e-5)}
GATES = {"decay": "log_decay", "step": "step", "momentum": "momentum"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["recurrent", "chunked"])
@pytest.mark.parametrize("name", CASES)
def test_golden(shared, x64, name, form, dtype):
    dtype, tolerance = DTYPES[dtype]
    data = np.load(shared / "golden" / f"{name}.npz", allow_pickle=False)
    memory = mj.zoo.get(str(data["family"]), chunk_size=16)
    names = ["q", "k", "v", "initial_state", *(n for n in GATES if n in data)]
    arrays = {n: jnp.asarray(data[n], dtype) for n in names}
    segment_ids = jnp.asarray(data["segment_ids"]) if "segment_ids" in data else None
    params = memory.init(
        jax.random.key(0),
        heads=data["q"].shape[2],
        key_dim=data["q"].shape[3],
        value_dim=data["v"].shape[3],
    )

    def run(arrays):
        state = memory.init_state(
            params,
            batch=data["q"].shape[0],
            weights={"memory": arrays["initial_state"]},
            dtype=dtype,
        )
        gates = {GATES[n]: x for n, x in arrays.items() if n in GATES}
        y, state = mj.memorize(
            memory,
            params,
            arrays["q"] * float(data["scale"]),
            arrays["k"],
            arrays["v"],
            gates,
            state=state,
            segment_ids=segment_ids,
            form=form,
        )
        return jnp.sum(y * jnp.asarray(data["ct"], dtype)), (y, state.weights["memory"])

    gradients, (y, final) = jax.jit(jax.grad(run, has_aux=True))(arrays)
    assert y.dtype == final.dtype == dtype
    close(y, data["out"], rtol=tolerance)
    close(final, data["final_state"], rtol=tolerance)
    for n in arrays:
        close(gradients[n], data[f"grad_{n}"], rtol=tolerance)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_golden_momentum(shared, x64, form):
    """A linear Titans memory with chunks of one token: the momentum of this library, whose steps
    are 2/D of the file's because of its mean square loss."""
    data = np.load(shared / "golden" / "titans_linear_momentum_chunk1.npz", allow_pickle=False)
    memory = Memory(retention=L2Decay(), algorithm=Momentum(), chunk_size=8)
    width = data["q"].shape[3]
    params = memory.init(
        jax.random.key(0), heads=data["q"].shape[2], key_dim=width, value_dim=width
    )
    names = ["q", "k", "v", "step", "decay", "momentum", "initial_W1", "initial_momentum_W1"]
    arrays = {n: jnp.asarray(data[n]) for n in names}

    def run(arrays):
        state = memory.init_state(
            params, batch=2, weights={"memory": arrays["initial_W1"]}, dtype=jnp.float64
        )
        state = dataclasses.replace(state, momentum={"memory": arrays["initial_momentum_W1"]})
        gates = {GATES[n]: x for n, x in arrays.items() if n in GATES}
        gates["step"] *= 2 / width
        y, state = mj.memorize(
            memory, params, *(arrays[n] for n in "qkv"), gates, state=state, form=form
        )
        return jnp.sum(y * data["ct"]), (y, state)

    gradients, (y, state) = jax.jit(jax.grad(run, has_aux=True))(arrays)
    close(y, data["out"], rtol=1e-10)
    close(state.weights["memory"], data["final_W1"], rtol=1e-10)
    close(state.momentum["memory"], data["final_momentum_W1"], rtol=1e-10)
    for n in arrays:
        close(gradients[n], data[f"grad_{n}"], rtol=1e-10)
