"""Times every memory of the zoo on this machine, forward and backward, chunked and recurrent.

    python experiments/bench_memory.py [--tokens 2048] [--names yaad deltanet]

Prints milliseconds (the least of the repetitions), and the recurrent form's time over the chunked
one's: compare ratios of one run, absolute times hold for one machine at one moment.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import miras_jax as mj


def inputs_of(memory, batch: int, tokens: int, heads: int, width: int) -> dict:
    rng = np.random.default_rng(0)
    shape = (batch, tokens, heads, width)
    inputs = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name in "qkv"}
    for name in "qk":
        inputs[name] /= jnp.linalg.norm(inputs[name], axis=-1, keepdims=True)
    for name, gate in memory.gates.items():
        logits = rng.normal(size=gate.shape(shape[:3], width, width))
        inputs[name] = gate.activate(jnp.asarray(logits, jnp.float32))
    return inputs


def milliseconds(function: Callable, *args, repeat: int) -> float:
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=mj.zoo.names(), choices=mj.zoo.names())
    parser.add_argument("--tokens", type=int, default=512, help="tokens per row")
    parser.add_argument("--batch", type=int, default=2, help="rows")
    parser.add_argument("--heads", type=int, default=4, help="memories per row")
    parser.add_argument("--width", type=int, default=64, help="channels of a key and a value")
    parser.add_argument("--repeat", type=int, default=3, help="timed calls")
    args = parser.parse_args()

    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; ", end="")
    print(f"B {args.batch}, T {args.tokens}, H {args.heads}, K = V = {args.width}; milliseconds")
    print(f"{'':18}{'forward':>24}{'forward and backward':>32}")
    print(f"{'':18}" + f"{'recurrent':>10}{'chunked':>9}{'ratio':>7}{'':6}" * 2)
    for name in args.names:
        memory = mj.zoo.get(name)
        inputs = inputs_of(memory, args.batch, args.tokens, args.heads, args.width)
        params = memory.init(
            jax.random.key(0), heads=args.heads, key_dim=args.width, value_dim=args.width
        )

        def read(params, inputs, form, memory=memory):
            gates = {n: x for n, x in inputs.items() if n not in "qkv"}
            y, _ = mj.memorize(memory, params, *(inputs[n] for n in "qkv"), gates, form=form)
            return jnp.sum(y * y)

        line = f"{name:18}"
        for function in (read, jax.grad(read, argnums=(0, 1))):
            jitted = jax.jit(function, static_argnums=2)
            slow, fast = (
                milliseconds(jitted, params, inputs, form, repeat=args.repeat)
                for form in ("recurrent", "chunked")
            )
            line += f"{slow:10.1f}{fast:9.1f}{slow / fast:7.1f}{'':6}"
        print(line.rstrip(), flush=True)


if __name__ == "__main__":
    main()
