"""One token as a step, for decoding: the library's recurrent form, as it stands."""

import dataclasses
from typing import Any

import jax

from kernels_pallas.deep import chunk_of
from miras_jax.memory.head import Head
from miras_jax.memory.recurrent import token_step


@dataclasses.dataclass(frozen=True)
class TokenStep:
    """A token of any memory without an optimizer's state.

    The carry is "weights" and, where the memory has them, "momentum" and "start", by layer
    `[inputs, outputs]`; consts are the initial accumulators by layer; tokens are q, k, v and the
    gates by name, `[1, n]`. Two marks: "reset" where asked for, and "phase", which is no mark but
    the number of tokens of the current chunk read before.

    Attributes:
      memory: `miras_jax.memory.memory.Memory`.
    """

    memory: Any

    name = "token"

    def __call__(self, carry, consts, tokens, marks):
        head = Head(carry["weights"], carry.get("momentum", {}), carry.get("start", {}), {})
        token = chunk_of(self.memory, tokens, marks)
        with jax.default_matmul_precision("highest"):
            head, _, y, _ = token_step(self.memory, consts, head, token, marks["phase"][0, 0])
        result = {"weights": head.weights, "momentum": head.momentum, "start": head.start}
        return {name: result[name] for name in carry}, y
