"""Deep memories as a step: the library's one chunk function, as it stands.

`miras_jax.memory.chunked.chunk_step` is pure `jnp` and knows nothing of kernels; here its state and
its tokens are given the shapes that kernels carry.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from miras_jax.memory.chunked import chunk_step
from miras_jax.memory.head import Chunk, Head, choose, marked


@dataclasses.dataclass(frozen=True)
class DeepStep:
    """A chunk of a memory whose gradients are taken at the chunk's start.

    The carry is "weights" and, where the memory has them, "momentum", by layer `[inputs, outputs]`;
    consts are the initial accumulators by layer; tokens are q, k, v and the gates by name.

    Attributes:
      memory: `miras_jax.memory.memory.Memory`.
      precision: of the products, "highest" or "bfloat16".
      placed: the tokens lie on the chunk grid with dead ones around them, told by the mark "live";
        the carry then has "start" besides, the accumulators at the start of the last chunk that is
        not complete.
    """

    memory: Any
    precision: Literal["highest", "bfloat16"] = "highest"
    placed: bool = False

    def __call__(self, carry, consts, tokens, marks):
        head = Head(carry["weights"], carry.get("momentum", {}), carry.get("start"), {})
        chunk = chunk_of(self.memory, tokens, marks)
        complete = marked(chunk.live[-1:]) if self.placed else True
        with jax.default_matmul_precision("highest" if self.precision == "highest" else "default"):
            after, y = chunk_step(self.memory, consts, head, chunk, complete)
        result = {"weights": after.weights}
        if head.momentum:
            result["momentum"] = after.momentum
        if self.placed:
            start = carry["start"]
            if chunk.reset is not None:
                initial = {name: consts[name] for name in start}
                start = choose(marked(chunk.reset), initial, start)
            result["start"] = choose(complete, after.weights, start)
        return result, y


def chunk_of(memory: Any, tokens: Mapping, marks: Mapping) -> Chunk:
    """Tokens and marks of a step as the library's `Chunk`, gates per head without their axis."""
    gates = {
        name: tokens[name][:, 0] if gate.per == "head" else tokens[name]
        for name, gate in memory.gates.items()
    }
    reset, live = (marks[name][:, 0] > 0 if name in marks else None for name in ("reset", "live"))
    return Chunk(tokens["q"], tokens["k"], tokens["v"], gates, reset, live)
