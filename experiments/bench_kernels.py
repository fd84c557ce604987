"""Times the kernels on an accelerator, and what "auto" takes on a CPU.

    make bench-kernels
    python experiments/bench_kernels.py [--rows gla yaad] [--small] [--out docs/results/kernels.md]
    python experiments/bench_kernels.py --device-report

On a GPU or TPU: the ops of experiments/kernel_ops.py, forward and forward and backward, by kernel
and in pure JAX (the chunked form). On a CPU: `form="auto"` beside every form in pure JAX for every
memory of the zoo, by length. Programs take turns and the least time of each counts, so that other
work on the machine hits all of them alike (--busy counts the process's CPU time instead); "auto" is
the time of the form whose program is the same as its own.

Nothing is timed that has not just passed its check: output, state and gradients of a short sequence
of the same widths against the recurrent form. The JSON beside the page has every figure; a run puts
its results in the place of older ones of the same device, and writes the page and the plot anew.
"""

import argparse
import functools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from bench_memory import FREE
from kernel_errors import PARTS, drawn, pulled, relative
from kernel_ops import CPU_LENGTHS, CPU_SIZES, OPS, SMALL, Op
from kernel_tables import page, plot, report
from kernel_traffic import memory_of, traffic, work

import miras_jax as mj
from miras_jax.devices import chip_of
from miras_jax.memory.memory import Memory

CHECKED = 192
"""Tokens of a check: three chunks of a linear memory, twelve of most deep ones."""
ALLOWED = {"float32": 1e-4, "bfloat16": 3e-2}
"""Largest relative l2 error of a part. Rounding gives about 1e-6 and up to 1.4e-2, the gradients
of memora (docs/results/kernel_errors.md); a wrong term gives 1e-1 and more."""
FORMS = ("recurrent", "chunked", "associative")
SLOW = 4.0
"""A form this many times slower than the best is not run at four times the length."""
TURN, LONG, MIN_TURNS = 4.0, 50.0, 8
"""Milliseconds of a turn, of a long call, and the least number of turns."""


class Refused(Exception):
    """What failed its check, or cannot be run."""


def check(memory: Memory, form: str, width: int, dtype: str, heads: int = 1) -> dict[str, float]:
    """The errors of a form on a short sequence.

    Raises:
      Refused: one of them is too large.
    """
    params, inputs, expected = _expected(memory, width, dtype, heads)
    found = jax.jit(pulled(memory, form))(params, inputs)
    errors = {part: relative(found[part], expected[part]) for part in PARTS}
    worst = max(errors, key=errors.get)
    if not errors[worst] <= ALLOWED[dtype]:
        raise Refused(f"{form} differs from recurrent: {worst} by {errors[worst]:.1e}")
    return errors


@functools.lru_cache(maxsize=1)
def _expected(memory: Memory, width: int, dtype: str, heads: int) -> tuple:
    """Parameters and inputs of a check, and what they give by the recurrent form in float32."""
    inputs = drawn(memory, CHECKED, heads, width, jnp.dtype(dtype))
    params = memory.init(jax.random.key(0), heads=heads, key_dim=width, value_dim=width)
    exact = {name: x.astype(jnp.float32) for name, x in inputs.items()}
    return params, inputs, jax.jit(pulled(memory, "recurrent"))(params, exact)


def passes(memory: Memory, form: str) -> dict[str, Callable]:
    """Functions of parameters and inputs: the output, and a gradient by everything."""

    def forward(params, inputs):
        gates = {name: x for name, x in inputs.items() if name not in "qkv"}
        return mj.memorize(memory, params, *(inputs[n] for n in "qkv"), gates, form=form)[0]

    def loss(params, inputs):
        return jnp.sum(jnp.square(forward(params, inputs).astype(jnp.float32)))

    return {"forward": forward, "forward and backward": jax.grad(loss, argnums=(0, 1))}


def compiled(function: Callable, *args) -> tuple[str, Callable]:
    """The text of a program, and the program.

    Raises:
      Refused: it would allocate more than half of the machine's memory.
    """
    lowered = jax.jit(function).lower(*args)
    program = lowered.compile()
    peak = program.memory_analysis().temp_size_in_bytes
    if jax.default_backend() == "cpu" and peak > FREE:
        raise Refused(f"would allocate {peak / 1e9:.0f} GB")
    return lowered.as_text(), program


def least(
    programs: dict[str, Callable],
    args: tuple,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The least milliseconds of a call of each program, in turns of a few milliseconds each.

    What takes long and is far behind after two turns takes no more.
    """

    def turn(program, calls):
        begin = clock()
        for _ in range(calls):
            out = program(*args)
        jax.block_until_ready(out)
        return 1e3 * (clock() - begin) / calls

    for program in programs.values():
        turn(program, 1)  # the first call is longer than the others
    times = dict.fromkeys(programs, math.inf)
    begin, turns = time.perf_counter(), 0
    while turns < MIN_TURNS or time.perf_counter() - begin < seconds:
        for name, program in programs.items():
            behind = times[name] > max(LONG, SLOW * min(times.values()))
            if not (behind and turns >= 2):
                calls = 1 if times[name] == math.inf else math.ceil(TURN / times[name])
                times[name] = min(times[name], turn(program, calls))
        turns += 1
        if time.perf_counter() - begin > 10 * seconds:
            break
    return times


def inputs_of(memory: Memory, op: Op) -> tuple[Any, dict]:
    """Parameters and random inputs of an op."""
    drawn_once = drawn(memory, op.tokens, 1, op.width, jnp.dtype(op.dtype))

    def spread(x):
        # The times do not depend on the numbers: rows and heads share them.
        return jnp.tile(x, (op.batch, 1, op.heads) + (1,) * (x.ndim - 3))

    sizes = {"heads": op.heads, "key_dim": op.width, "value_dim": op.width}
    params = memory.init(jax.random.key(0), **sizes)
    return params, {name: spread(x) for name, x in drawn_once.items()}


def time_op(op: Op, forms: list[str], backend: str, seconds: float) -> list[dict]:
    """The figures of an op by pass and form; a form that cannot run has a reason instead."""
    memory, on = memory_of(op), chip_of(jax.devices()[0].device_kind)
    params, inputs = inputs_of(memory, op)
    entries, programs = [], {}
    for form in forms:
        try:
            errors = check(memory, form, op.width, op.dtype, heads=2)
            for what, function in passes(memory, form).items():
                program = compiled(function, params, inputs)[1]
                jax.block_until_ready(
                    program(params, inputs)
                )  # or the machine has too little memory
                programs.setdefault(what, {})[form] = program, errors
        except Refused as reason:
            entries.append({**op._asdict(), "form": form, "refused": str(reason)})
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            line = str(error).strip().splitlines()[0][:200]
            entries.append({**op._asdict(), "form": form, "refused": line})
    for what, found in programs.items():
        times = least(
            {form: program for form, (program, _) in found.items()}, (params, inputs), seconds
        )
        backward = what != "forward"
        moved = sum(traffic(op, backward, backend).values())
        for form, milliseconds in times.items():
            entry = {**op._asdict(), "form": form, "pass": what, "ms": milliseconds}
            entry |= {"tokens/s": 1e3 * op.batch * op.tokens / milliseconds}
            entry |= {"bytes": moved, "flops": work(op, backward, backend)}
            entry["errors"] = found[form][1]
            if on:
                entry["of bandwidth"] = moved / (1e-3 * milliseconds) / on.bandwidth
                entry["of products"] = entry["flops"] / (1e-3 * milliseconds) / on.flops
            entries.append(entry)
    return entries


def compare(
    name: str,
    memory,
    lengths: tuple,
    sizes: tuple,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict]:
    """The times of all forms in pure JAX beside "auto", by length and pass."""
    batch, heads, width = sizes
    forms = [form for form in FORMS if form in memory.forms]
    refused = {}
    for form in forms[1:]:
        try:
            check(memory, form, width, "float32")
        except Refused as reason:
            refused[form] = str(reason)
    entries: list[dict] = []
    slow: dict[str, set] = {}
    for tokens in lengths:
        op = Op(name, "", batch, tokens, heads, width, "float32")
        args = inputs_of(memory, op)
        for what in passes(memory, "auto"):
            gone = slow.setdefault(what, set())
            programs, texts, reasons = {}, {}, dict(refused)
            for form in forms:
                if form in gone:
                    reasons[form] = "slow at a quarter of the length"
                if form in reasons:
                    continue
                try:
                    text, program = compiled(passes(memory, form)[what], *args)
                    texts[form], programs[form] = text, program
                except Refused as reason:
                    reasons[form] = str(reason)
            automatic = jax.jit(passes(memory, "auto")[what]).lower(*args).as_text()
            same = next((form for form, text in texts.items() if text == automatic), None)
            if same is None:
                programs["auto"] = compiled(passes(memory, "auto")[what], *args)[1]
            times = least(programs, args, seconds, clock)
            best = min(times.values())
            gone |= {form for form, t in times.items() if tokens >= 64 and t > SLOW * best}
            ratio = times[same or "auto"] / best
            entry = {"row": name, "tokens": tokens, "pass": what, "auto": same, "ratio": ratio}
            entries.append({**entry, "ms": times, "not run": reasons})
    return entries


def distinct() -> dict[str, Any]:
    """Every memory of the zoo once, by the first row that has it."""
    memories = {name: mj.zoo.get(name) for name in mj.zoo.names()}
    first = {memory: name for name, memory in reversed(memories.items())}
    return {name: memory for memory, name in reversed(first.items())}


def put(part: dict, entries: list[dict], rows: list[str]) -> None:
    """Puts a run's results in the place of older ones of the same rows."""
    kept = [entry for entry in part.get("results", []) if entry["row"] not in rows]
    part["results"] = kept + entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device-report", action="store_true", help="print who would measure")
    parser.add_argument("--rows", nargs="+", help="of the zoo; all by default")
    parser.add_argument("--small", action="store_true", help="small ops and short sequences")
    parser.add_argument("--ops", action="store_true", help="on a CPU too, time ops, not auto")
    parser.add_argument("--lengths", nargs="+", type=int, default=CPU_LENGTHS, help="T on a CPU")
    parser.add_argument("--seconds", type=float, default=1.0, help="for the turns of a pass")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="where other work takes the CPU: count the process's CPU time, on one core",
    )
    parser.add_argument("--out", type=Path, help="markdown file; JSON and plot are put beside it")
    args = parser.parse_args()
    if args.device_report:
        print(json.dumps(report(), indent=1))
        return

    clock = time.perf_counter
    if args.busy:
        clock = time.process_time
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before jax starts its threads
    record: dict = {"accelerators": {}, "cpu": {}}
    if args.out and args.out.with_suffix(".json").exists():
        record = json.loads(args.out.with_suffix(".json").read_text())
    platform = jax.default_backend()

    def save(part):
        part["report"] = report() | {"busy": args.busy}
        if args.out:
            args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
            args.out.write_text(page(record))
            plot(record, args.out.with_suffix(".png"))

    if platform == "cpu" and not args.ops:
        for name, memory in distinct().items():
            if args.rows and name not in args.rows:
                continue
            lengths = tuple(args.lengths)
            entries = compare(name, memory, lengths, CPU_SIZES, args.seconds, clock)
            for entry in entries:
                times = " ".join(f"{form} {t:.3g}" for form, t in entry["ms"].items())
                what = f"{name:20} {entry['tokens']:6} {entry['pass']:20} {entry['auto']!s:10}"
                print(f"{what} {entry['ratio']:.3f}  {times}", flush=True)
            put(record["cpu"], entries, [name])
            save(record["cpu"])
        return
    forms = ["chunked"] + [f"pallas_{platform}"] * (platform != "cpu")
    part = record["accelerators"].setdefault(jax.devices()[0].device_kind, {})
    if platform == "cpu":
        part = {}  # shown, not kept: a CPU has no place among the accelerators
    for op in SMALL if args.small else OPS:
        if args.rows and op.row not in args.rows:
            continue
        entries = time_op(op, forms, platform if platform != "cpu" else "tpu", args.seconds)
        for entry in entries:
            shown = entry.get("refused") or f"{entry['pass']:20} {entry['ms']:.3f} ms"
            print(f"{op.name:60} {entry['form']:12} {shown}", flush=True)
        kept = [e for e in part.get("results", []) if Op(**{f: e[f] for f in Op._fields}) != op]
        part["results"] = kept + entries
        if platform != "cpu":
            save(part)


if __name__ == "__main__":
    main()
