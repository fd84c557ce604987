"""Linear memories against oracle data: one matrix, Longhorn's entries, MesaNet's two matrices."""

import jax.numpy as jnp
import pytest

import miras_jax.memory as mm
from tests.golden.case import FORMS, TOLERANCES, Family, check, memorize
from tests.nights import nightly_but

CHUNK = 16  # two or three chunks in a file, and documents that begin inside one
FILES = {
    "linear_attention": ("", "_2", "_packed"),
    "retnet": ("", "_2", "_state", "_packed"),
    "simple_gla": ("", "_2", "_packed"),
    "mamba2": ("", "_2", "_packed"),
    "gla": ("", "_2", "_packed"),
    "hgrn2": ("", "_2", "_packed"),
    "rwkv7": ("", "_generic", "_packed"),
    "deltanet": ("", "_2", "_packed"),
    "gated_deltanet": ("", "_2", "_packed"),
    "kda": ("", "_2", "_packed"),
    "gdn2": ("", "_2", "_packed"),
    "comba": ("", "_2", "_packed"),
    "delta_product": ("",),
    "gated_delta_product": ("", "_packed"),
    "longhorn": ("", "_scalar_step"),
    "mesanet": ("", "_2", "_packed"),
}
CASES = [family + suffix for family, suffixes in FILES.items() for suffix in suffixes]
GATES = {"decay": "log_decay", "p": "address", "a": "removal", "b": "replacement"}


def matrix(memory, x, form):
    """One matrix, whose gates are arrays of the file."""
    gates = {gate: x[n] for n in x if (gate := GATES.get(n, n)) in memory.gates}
    # RetNet's parallel reference has no state: its files begin at zero and hold no final one.
    has_state = "initial_state" in x
    initial = {"weights": {"memory": x["initial_state"]}} if has_state else {}
    y, state = memorize(memory, x, gates, form, **initial)
    return {"out": y, **({"final_state": state.weights["memory"]} if has_state else {})}


def tied_key(memory, x, form):
    """HGRN2: the key is what the forget gate lets go, so its gradient goes to the decay."""
    return matrix(memory, {**x, "k": 1 - jnp.exp(x["decay"])}, form)


def two_steps(memory, x, form):
    """DeltaProduct: step j of token t lies at index 2t + j of k, v and step."""
    first, second = ({n: x[n][:, j::2] for n in ("k", "v", "step")} for j in range(2))
    second = {"key_2": second["k"], "value_2": second["v"], "step_2": second["step"]}
    return matrix(memory, {**x, **first, **second}, form)


def entries(memory, x, form):
    """Longhorn: a step per value channel, or one for all; the K V entries in one row."""
    step = x["step"] if x["step"].ndim == 4 else x["step"][..., None]
    gates = {"step": jnp.broadcast_to(step, x["v"].shape)}
    y, state = memorize(memory, x, gates, form)
    final = state.weights["memory"]
    widths = x["k"].shape[-1], x["v"].shape[-1]
    return {"out": y, "final_state": final.reshape(*final.shape[:2], *widths)}


def normal_equations(memory, x, form):
    """MesaNet: a matrix of keys, one of values, and the same ridge at every token. The file's
    matrix of keys multiplies columns, this library's rows: the transpose of a symmetric matrix,
    which only its gradient tells apart."""
    gates = {"step": x["step"], "log_decay": x["decay"]}
    gates["ridge"] = jnp.broadcast_to(x["ridge"], x["q"].shape)
    weights = {"keys": x["initial_state_kk"].mT, "memory": x["initial_state"]}
    y, state = memorize(memory, x, gates, form, weights=weights)
    keys, values = state.weights["keys"], state.weights["memory"]
    return {"out": y, "final_state_kk": keys.mT, "final_state": values}


def hebbian(decay=None, **choices):
    """Writes k^T v, whatever the memory holds; `decay` is per "head" or per "key" channel."""
    retention = mm.L2Decay(mm.log_decay(decay)) if decay else mm.NoRetention()
    choices = {"algorithm": mm.GradientDescent(step=None), **choices}
    return mm.Memory(bias=mm.DotProduct(), retention=retention, chunk_size=CHUNK, **choices)


def delta(decay=None, decay_first=True, **choices):
    """Writes the residual, which is measured against the decayed memory (or that before it)."""
    retention = mm.NoRetention()
    if decay:
        retention = mm.L2Decay(mm.log_decay(decay), decay_first=decay_first)
    return mm.Memory(retention=retention, chunk_size=CHUNK, **choices)


def gdn2(data):
    gates = {"erase": mm.Gate(per="key"), "write": mm.Gate(per="value")}
    return delta("key", algorithm=mm.Decoupled(step=None, **gates))


def comba(data):
    address = mm.Gate(per="key", activation="unit")
    return delta("head", algorithm=mm.Decoupled(step=mm.Gate(), address=address))


def delta_product(data):
    return delta("head" if "decay" in data else None, algorithm=mm.SeveralSteps())


def longhorn(data):
    step = mm.Gate(per="value")
    return delta(architecture=mm.Entries(), algorithm=mm.Implicit(step=step))


def mesanet(data):
    """Conjugate gradients solve a K x K system in K steps but for rounding. K is 8 or 16 here and
    the condition number below 8: 16 steps leave errors of 2e-14, 30 none that can be seen."""
    return hebbian(
        "head",
        architecture=mm.NormalEquations(iterations=30),
        algorithm=mm.GradientDescent(),
    )


FAMILIES = {
    "linear_attention": Family(lambda data: hebbian(), matrix),
    "retnet": Family(lambda data: hebbian("head"), matrix),
    "simple_gla": Family(lambda data: hebbian("head"), matrix),
    "mamba2": Family(lambda data: hebbian("head"), matrix),
    "gla": Family(lambda data: hebbian("key"), matrix),
    "hgrn2": Family(lambda data: hebbian("key"), tied_key),
    "rwkv7": Family(lambda data: delta("key", decay_first=False, algorithm=mm.Removal()), matrix),
    "deltanet": Family(lambda data: delta(), matrix),
    "gated_deltanet": Family(lambda data: delta("head"), matrix),
    "kda": Family(lambda data: delta("key"), matrix),
    "gdn2": Family(gdn2, matrix),
    "comba": Family(comba, matrix),
    "delta_product": Family(delta_product, two_steps),
    "longhorn": Family(longhorn, entries),
    "mesanet": Family(mesanet, normal_equations),
}


def forms(name):
    """Longhorn's state decays entry by entry, which no chunk can sum as products of matrices."""
    return FORMS[:1] if name.startswith("longhorn") else FORMS


@pytest.mark.parametrize(
    ("name", "form", "dtype"),
    [(name, form, "float64") for name in CASES for form in forms(name)]
    + nightly_but(
        [(name, form, "float32") for name in CASES for form in forms(name)],
        [(name, "chunked", "float32") for name in ("gla", "gated_deltanet", "rwkv7", "mesanet")],
    ),
)
def test_golden(shared, x64, name, form, dtype):
    check(shared, FAMILIES, name, form, dtype, TOLERANCES[dtype])
