"""Times every memory of the zoo on this machine, and writes the figures down.

    python experiments/bench_memory.py [--names yaad deltanet] [--out docs/results/memories.md]

Two tables. Forms: milliseconds forward and backward at T = 2,048 of the recurrent and the chunked
form, and their ratio. Lengths: forward and backward from T = 512 to 16,384 in the form that "auto"
takes, the peak of temporary memory that the compiled program allocates, and the slope of log time
against log T from 2,048 on (1 is linear). Times are the least of the repetitions; compare ratios of
one run, absolute times hold for one machine at one moment. With B = 2, H = 4, K = V = 64.
"""

import argparse
import datetime
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import miras_jax as mj
from miras_jax.memory import Memory

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LINEAR_FROM = 2048


def inputs_of(memory, batch: int, tokens: int, heads: int, width: int) -> dict:
    """Random inputs of a memory: unit-norm q and k, gates round their initial values."""
    rng = np.random.default_rng(0)
    shape = (batch, tokens, heads, width)
    inputs = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name in "qkv"}
    for name in "qk":
        inputs[name] /= jnp.linalg.norm(inputs[name], axis=-1, keepdims=True)
    for name, gate in memory.gates.items():
        logits = rng.normal(size=gate.shape(shape[:3], width, width))
        inputs[name] = gate.activate(jnp.asarray(logits, jnp.float32))
    return inputs


def step_of(memory: Memory, form: str) -> Callable:
    """A forward and backward pass of `sum(y^2)` by the parameters and all inputs, jitted."""

    def loss(params, inputs):
        gates = {n: x for n, x in inputs.items() if n not in "qkv"}
        y, _ = mj.memorize(memory, params, *(inputs[n] for n in "qkv"), gates, form=form)
        return jnp.sum(y * y)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def milliseconds(function: Callable, *args, enough: float = 2.0, repeat: int = 5) -> float:
    """The least time of a call, over `repeat` calls or as many as fit into `enough` seconds."""
    jax.block_until_ready(function(*args))
    times = []
    while len(times) < repeat and sum(times) < enough:
        begin = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


def main():
    memories = {name: mj.zoo.get(name) for name in mj.zoo.names()}
    distinct = list({memory: name for name, memory in reversed(memories.items())}.values())[::-1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=distinct, choices=list(memories))
    parser.add_argument("--tokens", type=int, default=2048, help="T of the table of forms")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="T of the last column")
    parser.add_argument("--batch", type=int, default=2, help="rows")
    parser.add_argument("--heads", type=int, default=4, help="memories per row")
    parser.add_argument("--width", type=int, default=64, help="channels of a key and a value")
    parser.add_argument("--out", type=Path, help="markdown file to write the tables to")
    args = parser.parse_args()
    lengths = [t for t in LENGTHS if t <= args.longest]

    def prepared(name, tokens):
        memory = memories[name]
        inputs = inputs_of(memory, args.batch, tokens, args.heads, args.width)
        params = memory.init(
            jax.random.key(0), heads=args.heads, key_dim=args.width, value_dim=args.width
        )
        return memory, params, inputs

    forms = ["| model | chunk | recurrent | chunked | ratio |", "|---|---|---|---|---|"]
    growth = [
        "| model | " + " | ".join(f"{t:,}" for t in lengths) + " | slope |",
        "|---|" + "---|" * (len(lengths) + 1),
    ]
    print("forward and backward: ms recurrent / ms chunked; then ms (MB) by T", flush=True)
    for name in args.names:
        memory, params, inputs = prepared(name, args.tokens)
        times = {
            form: milliseconds(step_of(memory, form), params, inputs)
            for form in ("recurrent", "chunked")
            if form in memory.forms
        }
        ratio = f"{times['recurrent'] / times['chunked']:.1f}" if "chunked" in times else ""
        shown = [f"{times[f]:.0f}" if f in times else "none" for f in ("recurrent", "chunked")]
        chunk = getattr(memory, "chunk_size", "") if "chunked" in times else ""
        forms.append(f"| {name} | {chunk} | {shown[0]} | {shown[1]} | {ratio} |")

        measured, cells = {}, []
        for tokens in lengths:
            _, params, inputs = prepared(name, tokens)
            program = step_of(memory, "auto").lower(params, inputs).compile()
            measured[tokens] = milliseconds(program, params, inputs)
            peak = program.memory_analysis().temp_size_in_bytes / 1e6
            cells.append(f"{measured[tokens]:.0f} ({peak:.0f} MB)")
        late = [t for t in lengths if t >= LINEAR_FROM]
        slope = ""
        if len(late) > 1:
            slope = f"{np.polyfit(np.log(late), np.log([measured[t] for t in late]), 1)[0]:.2f}"
        growth.append(f"| {name} | " + " | ".join(cells) + f" | {slope} |")
        line = f"{name:24}{shown[0]:>8} /{shown[1]:>8} {ratio:>5}   {'  '.join(cells)}  {slope}"
        print(line, flush=True)

    if args.out:
        device = jax.devices()[0].device_kind
        heading = (
            f"`{shlex.join(['python', *sys.argv])}`, {datetime.date.today()}, jax "
            f"{jax.__version__} on {device}, float32, B = {args.batch}, H = {args.heads}, K = V = "
            f"{args.width}. Milliseconds, forward and backward, least of up to five calls. Rows of "
            "the zoo that share their memory with an earlier one are left out."
        )
        lengths_heading = (
            'In the form that `form="auto"` takes; in brackets the temporary memory of the '
            "compiled program. The slope is that of log time against log T from T = "
            f"{LINEAR_FROM:,} on; softmax attention is quadratic."
        )
        parts = ["# Time and memory of the memories", heading, f"## Forms, T = {args.tokens:,}"]
        parts += ["\n".join(forms), "## Lengths", lengths_heading, "\n".join(growth)]
        args.out.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
