"""Errors of every form and kernel against the float64 recurrence, by length and dtype.

    make kernel-errors
    python experiments/kernel_errors.py [--names gla yaad] [--all] [--lengths 256 1024 8192] \
        [--out docs/results/kernel_errors.md]

One row and one head, K = V = 32. Relative l2 errors of the output, the state after the last token
and the gradients by inputs, gates and parameters, each the largest over its arrays, of a loss that
weighs every output and every entry of the state at random. float32: inputs and forms are float32.
bfloat16: q, k, v and y are bfloat16, gates float32; all forms get the same rounded inputs as the
reference, and the column "stored" is the error of the reference itself once it is stored in the
dtypes of the results.

Kernels run by interpreter, or on the machine where it is one that they are made for. No interpreter
shows what a matrix unit does to float32 operands that are left at default precision, so this is
written into the traced kernels (experiments/rounding.py); "products" counts those it applies to.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from kernel_tables import heading, report, table
from rounding import rounded

import kernels_pallas
import miras_jax as mj
from kernels_pallas.cases import DEEP, LINEAR
from miras_jax.memory.memory import Memory

FAMILIES = ("gla", "gated_deltanet", "rwkv7", "yaad", "titans")
"""Rows by default, one a kind of kernel: decays by channel or by head, removal, deep memories."""
LENGTHS = (256, 1024, 8192)
DTYPES = ("float32", "bfloat16")
FORMS = ("chunked", "associative", "pallas_tpu", "pallas_gpu")
PARTS = ("y", "state", "gradients")


def drawn(memory: Memory, tokens: int, heads: int, width: int, dtype, seed: int = 0) -> dict:
    """Inputs of one row by name: unit-norm keys and queries, gates about their initial values."""
    rng = np.random.default_rng(seed)
    shape = (1, tokens, heads)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def normal():
        return rng.normal(size=(*shape, width))

    inputs = {"q": unit(normal()), "k": unit(normal()), "v": normal()}
    inputs = {name: jnp.asarray(x, dtype) for name, x in inputs.items()}
    for name, gate in memory.gates.items():
        logits = rng.normal(size=gate.shape(shape, width, width))
        # A further key has unit norm like the first; a longer one makes a memory that explodes.
        key = gate.is_input and gate.per == "key"
        value = unit(logits) if key else gate.activate(jnp.asarray(logits, jnp.float32))
        inputs[name] = jnp.asarray(value, dtype if gate.is_input else jnp.float32)
    return inputs


def weights(tree: Any, seed: int = 1) -> Any:
    """Random weights of the shapes of a tree, float32 numbers that bfloat16 holds."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.bfloat16).astype(jnp.float32), tree
    )


def pulled(memory: Memory, form: str) -> Callable:
    """A function of parameters and inputs that gives the `PARTS` of a read."""

    def read(params, inputs):
        gates = {name: x for name, x in inputs.items() if name not in "qkv"}
        y, state = mj.memorize(memory, params, *(inputs[name] for name in "qkv"), gates, form=form)
        return y, (state.weights, state.momentum) if isinstance(memory, Memory) else ()

    def loss(params, inputs):
        out = read(params, inputs)
        products = jax.tree.map(lambda x, w: jnp.sum(x * w), out, weights(out))
        return sum(jax.tree.leaves(products)), out

    def pull(params, inputs):
        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, (y, state)), gradients = gradient(params, inputs)
        return {"y": y, "state": state, "gradients": gradients}

    return pull


def reference(memory: Memory, params, inputs: dict) -> dict:
    """The parts by the recurrence in float64, as numpy arrays."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        params, inputs = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x, np.float64)), (params, inputs)
        )
        found = jax.jit(pulled(memory, "recurrent"))(params, inputs)
        return jax.tree.map(np.asarray, found)


def relative(found: Any, expected: Any) -> float:
    """The largest over the leaves of |found - expected| / |expected|, in l2; of a leaf that is all
    zeros, |found|."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        scale = np.linalg.norm(y.ravel()) or 1.0
        error = float(np.linalg.norm((x - y).ravel())) / scale
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def stored(expected: dict, like: dict) -> dict:
    """The reference in the dtypes of a form's results."""
    return jax.tree.map(lambda x, y: np.asarray(jnp.asarray(x, y.dtype)), expected, like)


def measured(memory: Memory, form: str, params, inputs: dict) -> tuple[dict, int | None]:
    """The parts by one form, and how many of its products a matrix unit rounds; None where the
    form ran on the machine itself, with whatever that rounds."""
    pull = pulled(memory, form)
    platform = form.removeprefix("pallas_")
    if platform == form or platform == jax.default_backend():
        return jax.jit(pull)(params, inputs), None
    with kernels_pallas.override(interpret=True):
        call, products = rounded(pull, platform, params, inputs)
    return jax.jit(call)(params, inputs), products


def errors(name: str, tokens: int, dtype: str, heads: int, width: int) -> list[dict]:
    """The errors of all forms of a row of the zoo, "stored" among them."""
    memory = mj.zoo.get(name)
    inputs = drawn(memory, tokens, heads, width, jnp.dtype(dtype))
    params = memory.init(jax.random.key(0), heads=heads, key_dim=width, value_dim=width)
    expected = reference(memory, params, inputs)
    entries = []
    for form in FORMS:
        if not form.startswith("pallas") and form not in memory.forms:
            continue
        begun = time.perf_counter()
        found, products = measured(memory, form, params, inputs)
        entry = {"row": name, "tokens": tokens, "dtype": dtype, "form": form, "products": products}
        entry |= {part: relative(found[part], expected[part]) for part in PARTS}
        entries.append(entry | {"seconds": round(time.perf_counter() - begun, 1)})
        if len(entries) == 1:
            kept = stored(expected, found)
            floor = {part: relative(kept[part], expected[part]) for part in PARTS}
            entries.insert(0, {**entry, "form": "stored", "seconds": 0.0, **floor})
    return entries


def document(record: dict) -> str:
    """The text of the page."""
    text = ["# Errors of the forms and kernels", heading(record["report"]), ABOUT]
    text += [f"B = 1, H = {record['heads']}, K = V = {record['width']}. {record['machine']}"]
    columns = ["row", "T", "part", "stored", *FORMS]
    for dtype in DTYPES:
        cells: dict[tuple, dict] = {}
        for entry in record["results"]:
            if entry["dtype"] == dtype:
                for part in PARTS:
                    line = cells.setdefault((entry["row"], entry["tokens"], part), {})
                    line[entry["form"]] = f"{entry[part]:.1e}"
        if cells:
            lines = [
                [row, f"{tokens:,}", part, *(found.get(form, "") for form in columns[3:])]
                for (row, tokens, part), found in cells.items()
            ]
            text += [f"## {dtype}", table(columns, lines)]
    text += ["## Products at default precision", PRODUCTS, products_table(record["results"])]
    return "\n\n".join(text) + "\n"


ABOUT = (
    "Relative l2 errors against the recurrence in float64, the largest over the arrays of each "
    "part: the output, the state after the last token, the gradients by inputs, gates and "
    "parameters of a loss that weighs every entry of output and state at random. All forms and the "
    "reference get the same inputs, rounded to the dtype; gates and parameters are float32. "
    "*stored* is the reference itself in the dtypes of the results: no form can do better."
)
PRODUCTS = (
    "Products of float32 operands that a kernel leaves at default precision, forward and backward. "
    "Their operands were rounded for the tables above as the matrix unit of a TPU (bfloat16) or of "
    "a GPU (TF32) does; every other product is float32 at highest precision, or says bfloat16 "
    "itself, and is interpreted as such. On a GPU highest precision is three passes of TF32, which "
    "the interpreter does not show."
)


def products_table(results: list[dict]) -> str:
    """By row: how many products are rounded, in each dtype and kernel."""
    columns = ["row"] + [f"{form} {dtype}" for form in FORMS[2:] for dtype in DTYPES]
    lines: dict[str, dict] = {}
    for entry in results:
        if entry["form"].startswith("pallas"):
            shown = "on the machine" if entry["products"] is None else entry["products"]
            lines.setdefault(entry["row"], {})[f"{entry['form']} {entry['dtype']}"] = shown
    return table(columns, [[row, *(x.get(c, "") for c in columns[1:])] for row, x in lines.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=FAMILIES, choices=[*LINEAR, *DEEP])
    parser.add_argument("--all", action="store_true", help="every row that has a kernel")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="values of T")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--width", type=int, default=32, help="channels of a key and a value")
    parser.add_argument("--out", type=Path, help="markdown file; the JSON is put beside it")
    args = parser.parse_args()

    platform = jax.default_backend()
    machine = f"pallas_{platform} ran on the machine, the other kernels by interpreter."
    record = {
        "report": report(),
        "heads": args.heads,
        "width": args.width,
        "machine": "Kernels ran by interpreter." if platform == "cpu" else machine,
        "results": [],
    }
    for name in [*LINEAR, *DEEP] if args.all else args.names:
        for tokens in args.lengths:
            for dtype in args.dtypes:
                found = errors(name, tokens, dtype, args.heads, args.width)
                record["results"] += found
                for entry in found:
                    parts = " ".join(f"{entry[part]:.1e}" for part in PARTS)
                    what = f"{name:20} {tokens:6} {dtype:9} {entry['form']:12}"
                    print(f"{what} {parts} {entry['seconds']:6.1f} s", flush=True)
        if args.out:
            args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
            args.out.write_text(document(record))


if __name__ == "__main__":
    main()
