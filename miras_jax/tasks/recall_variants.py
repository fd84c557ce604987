"""Harder recall: values that are overwritten, keys of two parts, values that are written wrong.

The first two are variants in the code of Zoology (arXiv 2312.04927).
"""

import dataclasses
import itertools
import math

import numpy as np

from miras_jax.tasks.mqar import Recall
from miras_jax.tasks.recall import check_room, distances, draw, draw_pairs, values_by_key
from miras_jax.tasks.task import Example, Split


def another(random: np.random.Generator, values: np.ndarray, vocab_size: int) -> np.ndarray:
    """Draws for each value another token of V/2 .. V - 1."""
    half = vocab_size // 2
    drawn = half + random.integers(vocab_size - half - 1, size=values.shape)
    return drawn + (drawn >= values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetting(Recall):
    """MQAR in which some keys are written again with another value; the latest is asked for.

    Groups: `kept` are keys with one value, `updated` those with two.
    """

    updates: int = 8
    """Keys that are written again behind all pairs, 0 to N."""

    @property
    def written(self) -> int:
        return 2 * (self.pairs + self.updates)

    @property
    def groups(self) -> tuple[str, ...]:
        return ("kept", "updated")

    def check(self) -> None:
        if not 0 <= self.updates <= self.pairs:
            raise ValueError(f"updates must be 0 to pairs = {self.pairs}, got {self.updates}.")
        super().check()

    def make(self, random: np.random.Generator, split: Split) -> Example:
        keys, values = draw_pairs(random, self.pairs, self.vocab_size)
        changed = random.choice(self.pairs, self.updates, replace=False)
        pairs = np.stack([keys, values], axis=1)
        values = values.copy()
        values[changed] = another(random, values[changed], self.vocab_size)
        written = np.concatenate([pairs, np.stack([keys, values], axis=1)[changed]]).ravel()
        groups = np.isin(np.arange(self.pairs), changed)
        return self._ask(random, written, keys[:, None], values, groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compositional(Recall):
    """Recall by two keys of which neither decides alone.

    The N = g^2 pairs of g first and g second keys have a value each; a triplet is first key, second
    key, value, a query both keys, in a slot of three tokens. Chance is a guess among the N values.
    """

    vocab_size: int = 8192
    """Token ids: 0 fills up, then come first keys, second keys and values, a third each."""
    pairs: int = 16
    """N, a square number."""

    @property
    def written(self) -> int:
        return 3 * self.pairs

    @property
    def groups(self) -> tuple[str, ...]:
        return distances(self.length).names

    def check(self) -> None:
        third = (self.vocab_size - 1) // 3
        if self.pairs < 1 or math.isqrt(self.pairs) ** 2 != self.pairs:
            raise ValueError(f"pairs must be a square number, got {self.pairs}.")
        if self.pairs > third:
            raise ValueError(
                f"vocab_size must be at least {3 * self.pairs + 1} for {self.pairs} distinct "
                f"values, got {self.vocab_size}."
            )
        check_room(self.length, self.written, self.pairs, width=3)

    def make(self, random: np.random.Generator, split: Split) -> Example:
        third, side = (self.vocab_size - 1) // 3, math.isqrt(self.pairs)
        first = draw(random, side, 1, third)
        second = draw(random, side, third + 1, 2 * third)
        values = draw(random, self.pairs, 2 * third + 1, 3 * third)
        keys = np.stack([np.repeat(first, side), np.tile(second, side)], axis=1)
        order = random.permutation(self.pairs)
        written = np.concatenate([keys, values[:, None]], axis=1)[order].ravel()
        return self._ask(random, written, keys, values, width=3)

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        values = values_by_key(tokens[: self.written], keys=2)
        read = tokens[:-1].tolist()
        found = [values.get((a, b), [0])[-1] for a, b in itertools.pairwise(read)]
        found = np.array([0, *found])
        found[: self.written] = 0
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrupted(Recall):
    """MQAR in which a share of the written values is replaced; the true ones are asked for.

    All pairs are written P times; which writes are replaced, and by which other value, is drawn
    anew for each. The oracle answers with the value that a key had most often, of several the
    first, which is not always the true one. Groups: keys of which no write was replaced (`clean`),
    and the others (`corrupted`).
    """

    pairs: int = 8
    """N, pairs of a key and a value; 1 to vocab_size / 2 - 1."""
    passes: int = 4
    """P, how often all pairs are written, in the same order."""
    noise: float = 0.25
    """Share of the N P written values that is replaced, 0 up to 1."""

    @property
    def written(self) -> int:
        return 2 * self.pairs * self.passes

    @property
    def groups(self) -> tuple[str, ...]:
        return ("clean", "corrupted")

    def check(self) -> None:
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise must be at least 0 and below 1, got {self.noise}.")
        super().check()

    def make(self, random: np.random.Generator, split: Split) -> Example:
        keys, values = draw_pairs(random, self.pairs, self.vocab_size)
        writes = np.tile(values, self.passes)
        count = round(self.noise * len(writes))
        wrong = random.choice(len(writes), count, replace=False)
        writes[wrong] = another(random, writes[wrong], self.vocab_size)
        written = np.stack([np.tile(keys, self.passes), writes], axis=1).ravel()
        groups = np.isin(np.arange(self.pairs), wrong % self.pairs)
        return self._ask(random, written, keys[:, None], values, groups)

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        written = values_by_key(tokens[: self.written])
        likeliest = {key: max(values, key=values.count) for (key,), values in written.items()}
        found = [likeliest.get(token, 0) for token in tokens[self.written : -1].tolist()]
        return np.array([0] * self.written + found)
