"""Time per token and memory while a model generates a long text.

    python experiments/bench_generate.py --names yaad transformer --out docs/results/generation.md

Untrained models of the quick start's size sample token by token. Per model and length it writes the
bytes of the state, the milliseconds a token over the last tenth of the text, and the peak memory of
its process. All but the transformer hold a state of constant size.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import resource
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from kernel_tables import table

import miras_jax as mj
from miras_jax.nn import LanguageModel, ModelConfig, generate


def measure(name: str, length: int, results) -> None:
    config = ModelConfig(memory=name, dim=128, depth=2, heads=4)
    model = LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))
    state = jax.eval_shape(lambda model: model.init_state(1, capacity=length), model)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    tokens = generate(model, np.array([0]), steps=length, key=jax.random.key(0))
    for _ in range(length - length // 10):
        next(tokens)
    begin = time.perf_counter()
    for _ in range(length // 10):
        next(tokens)
    milliseconds = 1e3 * (time.perf_counter() - begin) / (length // 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.put((size, milliseconds, peak))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=mj.zoo.names(), choices=mj.zoo.names())
    parser.add_argument("--lengths", nargs="+", type=int, default=[1000, 32000], help="at least 10")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    lines = []
    for name in args.names:
        for length in args.lengths:
            results = context.Queue()
            process = context.Process(target=measure, args=(name, length, results))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(
                    f"{name} at {length} tokens ended with exit code {process.exitcode}"
                )
            size, milliseconds, peak = results.get()
            line = [f"{length:,}", f"{size / 1e3:,.0f}", f"{milliseconds:.3f}", f"{peak:,.0f}"]
            print(name, *line, flush=True)
            lines.append([name, *line])
    if args.out:
        args.out.write_text(report(args, lines))


def report(args, lines: list[list[str]]) -> str:
    """The figures as a page."""
    lengths = " ".join(map(str, args.lengths))
    return (
        "# Time and memory of a long generation\n\n"
        f"`python experiments/bench_generate.py --names {' '.join(args.names)} --lengths {lengths}"
        f" --out docs/results/generation.md`, {datetime.date.today()}: {os.cpu_count()} cores"
        f" ({jax.default_backend()}), jax {jax.__version__}, Python {platform.python_version()}."
        " Untrained models of the quick start's size, one token at a time; the time a token is"
        " that of the last tenth of the text, the peak that of the process.\n\n"
        + table(["model", "tokens", "state, kB", "ms a token", "peak, MB"], lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
