"""Time per token and memory while a model generates a long text.

    python experiments/bench_generate.py [--names yaad transformer] [--lengths 1000 32000]

Untrained models of the quick start's size sample token by token. Per model and length it prints the
bytes of the state, the milliseconds a token over the last tenth of the text, and the peak memory of
its process. All but the transformer hold a state of constant size.
"""

import argparse
import multiprocessing
import resource
import time

import jax
import numpy as np
from flax import nnx

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
    args = parser.parse_args()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    print(f"{'':18}{'tokens':>8}{'state, kB':>12}{'ms a token':>12}{'peak, MB':>10}")
    context = multiprocessing.get_context("spawn")
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
            print(
                f"{name:18}{length:8,}{size / 1e3:12,.0f}{milliseconds:12.3f}{peak:10,.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
