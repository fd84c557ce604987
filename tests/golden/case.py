"""One file of oracle data against `mj.memorize`: output, final state and all input gradients."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import miras_jax as mj
from miras_jax.memory import Parameters
from tests.cases import close

FORMS = ("recurrent", "chunked")
TOLERANCES = {"float64": 1e-11, "float32": 1e-5}
"""Of the largest entry of an array. The files are exact to 1e-15, their inputs exact in float32;
errors seen are below 6e-15 in float64, but 5e-13 with Muon, and below 3e-6 in float32. A mistake in
a formula is worth 1e-3 and more, a wrong eps of a norm 1e-6."""


class Family(NamedTuple):
    """How the files of one family are read.

    Attributes:
      memory: from a file's numbers, by name, to the memory, made of its four choices.
      run: `run(memory, x, form)` calls `memorize` with the file's arrays x, q times the file's
        scale, and gives "out" and every "final_..." array under the file's names.
    """

    memory: Callable[[Mapping], mj.Memory]
    run: Callable[[mj.Memory, Mapping[str, jax.Array], str], dict[str, jax.Array]]


def check(shared: Path, families: Mapping[str, Family], name: str, form: str, dtype, rtol: float):
    """Asserts that a file's numbers come out, by the family that the file names, to `rtol` of the
    largest entry of each array."""
    with np.load(shared / "golden" / f"{name}.npz", allow_pickle=False) as file:
        data = {n: a.item() if a.ndim == 0 else a for n, a in file.items()}
    family = families[data["family"]]
    memory = family.memory(data)
    expected = {n: a for n, a in data.items() if n == "out" or n.startswith("final_")}
    slopes = {n.removeprefix("grad_"): a for n, a in data.items() if n.startswith("grad_")}
    inputs = {
        n: jnp.asarray(a, dtype if a.dtype.kind == "f" else jnp.int32)
        for n, a in data.items()
        if isinstance(a, np.ndarray) and n not in expected and not n.startswith("grad_")
    }
    gradients, results = _gradients(
        {n: inputs.pop(n) for n in slopes},
        {**inputs, "scale": jnp.asarray(data["scale"], dtype)},
        memory=memory,
        run=family.run,
        form=form,
    )
    assert all(a.dtype == dtype for a in results.values())
    close(results, expected, rtol=rtol)
    close(gradients, slopes, rtol=rtol)


@partial(jax.jit, static_argnames=("memory", "run", "form"))
def _gradients(wanted, others, *, memory, run, form):
    def value(wanted):
        x = {**wanted, **others}
        x["q"] *= x.pop("scale")
        results = run(memory, x, form)
        return jnp.sum(results["out"] * x["ct"]), results

    return jax.grad(value, has_aux=True)(wanted)


def memorize(memory, x, gates, form, *, params=None, **initial):
    """`mj.memorize` of a file's q, k and v.

    Args:
      memory, x, form: as `Family.run` gets them.
      gates: by name, as the memory lists them.
      params: learned starts and frozen layers by name, `[H, inputs, outputs]`.
      initial: weights and momentum by layer, `[B, H, inputs, outputs]`, for `init_state`.
    """
    q, k, v = x["q"], x["k"], x["v"]
    params = Parameters(params or {}, heads=q.shape[2], key_dim=q.shape[3], value_dim=v.shape[3])
    state = memory.init_state(params, batch=q.shape[0], dtype=q.dtype, **initial)
    ids = x.get("segment_ids")
    return mj.memorize(memory, params, q, k, v, gates, state=state, segment_ids=ids, form=form)
