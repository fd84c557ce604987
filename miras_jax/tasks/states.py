"""State tracking: what permutations, one a token, amount to.

Merrill et al., 2024 (arXiv 2404.08819). The word problem of S5 is complete for NC1, out of
reach of constant depth; parity and S3 are within reach of transitions with negative and with
complex eigenvalues.
"""

import dataclasses
import functools
import itertools
import math
from typing import Literal

import numpy as np

from miras_jax.tasks.task import Bins, Example, Split, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateTracking(Task):
    """The product of all permutations so far, asked for at every token.

    Token i is the i-th permutation of 0 .. degree - 1 in lexicographic order, 0 the identity; with
    x_t applied after those before it, the answer is x_t o ... o x_1, shown nowhere. Of degree 2 it
    is parity: a running sum modulo 2. Groups are positions. Chance is a guess among the
    permutations; among swaps, whose products of a length are all even or all odd, among half.
    """

    length: int = 128
    """T, permutations in a row."""
    degree: int = 5
    """Things that are permuted, 2 to 6: 2 is parity, 3 and 5 are S3 and S5."""
    elements: Literal["all", "swaps"] = "all"
    """Tokens that are drawn: all permutations, or those that exchange two things."""

    def check(self) -> None:
        if not 2 <= self.degree <= 6:
            raise ValueError(f"degree must be 2 to 6, got {self.degree}.")
        if self.elements not in ("all", "swaps"):
            raise ValueError(f"elements must be all or swaps, got {self.elements!r}.")
        if self.elements == "swaps" and self.degree == 2:
            raise ValueError("degree 2 has a single swap: the answers would be known.")

    @property
    def vocab_size(self) -> int:
        """Number of permutations."""
        return math.factorial(self.degree)

    @property
    def chance(self) -> float:
        return (2 if self.elements == "swaps" else 1) / self.vocab_size

    @property
    def groups(self) -> tuple[str, ...]:
        return Bins("position", self.length).names

    def make(self, random: np.random.Generator, split: Split) -> Example:
        drawn = swaps(self.degree) if self.elements == "swaps" else np.arange(self.vocab_size)
        tokens = np.append(random.choice(drawn, self.length), 0)
        places = Bins("position", self.length).of(np.arange(1, self.length + 1))
        return Example(tokens, self.oracle(tokens), np.ones(self.length), places)

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        table = products(self.degree)
        return np.array([*itertools.accumulate(tokens[:-1].tolist(), lambda s, x: table[x][s])])


@functools.cache
def products(degree: int) -> list[list[int]]:
    """`products[a][b]` is the token of a o b, b applied first."""
    permutations = [*itertools.permutations(range(degree))]
    number = {permutation: i for i, permutation in enumerate(permutations)}
    return [[number[tuple(a[i] for i in b)] for b in permutations] for a in permutations]


@functools.cache
def swaps(degree: int) -> np.ndarray:
    """The tokens that exchange two things, int64 `[degree (degree - 1) / 2]`."""
    permutations = np.array([*itertools.permutations(range(degree))])
    return np.flatnonzero((permutations != np.arange(degree)).sum(axis=1) == 2)
