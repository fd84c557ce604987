"""Times every memory of the zoo on this machine, and writes the figures down.

    python experiments/bench_memory.py [--names yaad deltanet] [--out docs/results/memories.md]

Two tables. Forms: milliseconds forward and backward at T = 2,048 of the recurrent and the chunked
form, and their ratio. Lengths: forward and backward from T = 512 to 16,384 in the form that "auto"
takes, the peak of temporary memory that the compiled program allocates, and the slope of log time
against log T from 2,048 on (1 is linear). Times are the least of the repetitions; compare ratios of
one run, absolute times hold for one machine at one moment. With B = 2, H = 4, K = V = 64.

A program that would allocate more than half of the machine's memory is not run. The file is written
after every row, so that an interrupted run keeps its figures.
"""

import argparse
import datetime
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import miras_jax as mj
from miras_jax.memory import Memory

LENGTHS = (512, 2048, 4096, 8192, 16384)
LINEAR_FROM = 2048
FREE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
"""Bytes that a program may allocate: half of the machine's memory."""


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


class Measured(NamedTuple):
    """A compiled program: bytes of temporary memory, and the least time of a call in milliseconds,
    or None if it was not run."""

    peak: float
    time: float | None

    def __str__(self):
        if self.time is None:
            return f"not run ({self.peak / 1e9:.0f} GB)"
        return f"{self.time:.0f} ({self.peak / 1e6:.0f} MB)"


def measure(function: Callable, *args, enough: float = 2.0, repeat: int = 5) -> Measured:
    """Times a jitted function over `repeat` calls or as many as fit into `enough` seconds."""
    program = function.lower(*args).compile()
    peak = program.memory_analysis().temp_size_in_bytes
    if peak > FREE:
        return Measured(peak, None)
    jax.block_until_ready(program(*args))
    times = []
    while len(times) < repeat and sum(times) < enough:
        begin = time.perf_counter()
        jax.block_until_ready(program(*args))
        times.append(time.perf_counter() - begin)
    return Measured(peak, 1e3 * min(times))


def document(args, forms: list[str], growth: list[str]) -> str:
    """The text of the file: the tables as far as they are."""
    device = jax.devices()[0].device_kind
    heading = (
        f"`{shlex.join(['python', *sys.argv])}`, {datetime.date.today()}, jax "
        f"{jax.__version__} on {device}, float32, B = {args.batch}, H = {args.heads}, K = V = "
        f"{args.width}. Milliseconds, forward and backward, least of up to five calls. Rows of "
        "the zoo that share their memory with an earlier one are left out. A program that would "
        "allocate more than half of the machine's memory is not run."
    )
    lengths_heading = (
        'In the form that `form="auto"` takes; in brackets the temporary memory of the '
        "compiled program. The slope is that of log time against log T from T = "
        f"{LINEAR_FROM:,} on; softmax attention is quadratic."
    )
    parts = ["# Time and memory of the memories", heading, f"## Forms, T = {args.tokens:,}"]
    parts += ["\n".join(forms), "## Lengths", lengths_heading, "\n".join(growth)]
    return "\n\n".join(parts) + "\n"


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
        runs = {
            form: measure(step_of(memory, form), params, inputs)
            for form in ("recurrent", "chunked")
            if form in memory.forms
        }
        times = {form: run.time for form, run in runs.items() if run.time is not None}
        ratio = f"{times['recurrent'] / times['chunked']:.1f}" if len(times) == 2 else ""
        shown = [
            f"{times[f]:.0f}" if f in times else str(runs.get(f, "none"))
            for f in ("recurrent", "chunked")
        ]
        chunk = getattr(memory, "chunk_size", "") if "chunked" in runs else ""
        forms.append(f"| {name} | {chunk} | {shown[0]} | {shown[1]} | {ratio} |")

        measured = {}
        for tokens in lengths:
            _, params, inputs = prepared(name, tokens)
            measured[tokens] = measure(step_of(memory, "auto"), params, inputs)
        cells = [str(run) for run in measured.values()]
        late = {t: run.time for t, run in measured.items() if t >= LINEAR_FROM and run.time}
        slope = ""
        if len(late) > 1:
            slope = f"{np.polyfit(np.log(list(late)), np.log(list(late.values())), 1)[0]:.2f}"
        growth.append(f"| {name} | " + " | ".join(cells) + f" | {slope} |")
        line = f"{name:24}{shown[0]:>8} /{shown[1]:>8} {ratio:>5}   {'  '.join(cells)}  {slope}"
        print(line, flush=True)
        if args.out:
            args.out.write_text(document(args, forms, growth))


if __name__ == "__main__":
    main()
