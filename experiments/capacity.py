"""How many pairs a memory holds before anything was trained, by its width.

    python experiments/capacity.py

n random keys of unit norm are written once with random values of norm sqrt(width), then all keys
are read. A pair is recalled if, of all values, its own has the largest inner product with what the
writes changed in the read. Steps are the row's initial ones; nothing decays. Mean over 8 draws and
3 starts; a guess recalls 1 of n.
"""

import dataclasses

import jax
import jax.numpy as jnp

import miras_jax as mj
from miras_jax import zoo
from miras_jax.memory import KL, Memory, log_decay
from miras_jax.memory.gate import unit

WIDTHS, PAIRS = (16, 32, 64), (16, 64)
DRAWS, STARTS = 8, 3
KEPT = -1e-6  # log decay of a memory that keeps everything


def memories() -> dict[str, Memory]:
    """The models of the paper with chunks of 8 tokens, and Memora with the printed softmax."""
    rows = {name: zoo.row(name).memory for name in ("moneta", "yaad", "memora")}
    printed = dataclasses.replace(rows["memora"], retention=KL(decay=log_decay()))
    rows["memora, weights of one sign"] = printed
    return {name: dataclasses.replace(memory, chunk_size=8) for name, memory in rows.items()}


def recalled(memory: Memory, width: int, pairs: int, seed: int) -> float:
    """The share of the pairs that the memory recalls."""
    random = jax.random.split(jax.random.key(seed), 3)
    params = memory.init(random[0], heads=1, key_dim=width, value_dim=width)
    keys = unit(jax.random.normal(random[1], (DRAWS, pairs, 1, width)))
    values = jax.random.normal(random[2], (DRAWS, pairs, 1, width))
    # Pairs are multiples of the chunk, so that reads that take the chunk's start see all writes.
    k, v = jnp.concatenate([keys, keys], axis=1), jnp.concatenate([values, 0 * values], axis=1)
    writes = jnp.arange(2 * pairs) < pairs

    def read(scale: float) -> jax.Array:
        gates = {}
        for name, gate in memory.gates.items():
            initial = KEPT if name == "log_decay" else gate.initial
            initial = scale * writes * initial if name == "step" else initial
            gates[name] = jnp.broadcast_to(initial, (DRAWS, 1, 2 * pairs)).transpose(0, 2, 1)
        return mj.memorize(memory, params, k, k, v, gates)[0][:, pairs:, 0]

    match = jnp.einsum("bnd,bmd->bnm", read(1.0) - read(0.0), values[:, :, 0])
    return float(jnp.mean(match.argmax(-1) == jnp.arange(pairs)))


def main() -> None:
    print("| memory |", " | ".join(f"{n} pairs, width {w}" for n in PAIRS for w in WIDTHS), "|")
    print("| --- |", " | ".join("---" for _ in PAIRS for _ in WIDTHS), "|")
    for name, memory in memories().items():
        cells = []
        for n in PAIRS:
            for width in WIDTHS:
                shares = [recalled(memory, width, n, seed) for seed in range(STARTS)]
                cells.append(f"{sum(shares) / STARTS:.2f}")
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
