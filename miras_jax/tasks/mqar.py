"""Multi-query associative recall. Arora et al., 2023 (Zoology, arXiv 2312.04927).

N pairs of a key and a value are written, then every key is asked for once, at a place of its own.
"""

import dataclasses

import numpy as np

from miras_jax.tasks.recall import (
    ask,
    check_pairs,
    check_room,
    distances,
    draw_pairs,
    values_by_key,
)
from miras_jax.tasks.task import Example, Split, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recall(Task):
    """What MQAR and its variants have in common.

    Chance is a guess among the N values that the keys have.
    """

    pairs: int = 16
    """N, pairs of a key and a value; 1 to vocab_size / 2 - 1."""
    vocab_size: int = 8192
    """Token ids: 0 fills up, the rest of the first half are keys, the second half values."""
    power: float = 0.01
    """a, slot i of the queries has weight i^(a - 1); 1 is uniform, smaller asks earlier."""
    random_non_queries: bool = True
    """Fills up with random tokens instead of 0."""

    @property
    def written(self) -> int:
        """Tokens before the slots of the queries."""
        return 2 * self.pairs

    def check(self) -> None:
        check_pairs(self.pairs, self.vocab_size)
        check_room(self.length, self.written, self.pairs)

    @property
    def chance(self) -> float:
        return 1 / self.pairs

    def _ask(self, random, written, queries, answers, groups=None, width=2) -> Example:
        return ask(
            random,
            written,
            queries,
            answers,
            groups,
            length=self.length,
            power=self.power,
            width=width,
            vocab_size=self.vocab_size if self.random_non_queries else None,
        )

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        values = values_by_key(tokens[: self.written])
        found = [values.get((token,), [0])[-1] for token in tokens[self.written : -1].tolist()]
        return np.array([0] * self.written + found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MQAR(Recall):
    """Multi-query associative recall. Zoology, arXiv 2312.04927, section 3."""

    passes: int = 1
    """P, how often all pairs are written, in the same order."""

    @property
    def written(self) -> int:
        return 2 * self.pairs * self.passes

    @property
    def groups(self) -> tuple[str, ...]:
        return distances(self.length).names

    def make(self, random: np.random.Generator, split: Split) -> Example:
        keys, values = draw_pairs(random, self.pairs, self.vocab_size)
        written = np.tile(np.stack([keys, values], axis=1).ravel(), self.passes)
        return self._ask(random, written, keys[:, None], values)


# (pairs, length, training examples) of Based, arXiv 2402.18668, and (pairs, length) of its tests.
MIX = ((4, 64, 100_000), (8, 128, 20_000), (16, 256, 20_000), (32, 256, 20_000), (64, 256, 20_000))
MIX_TESTS = ((4, 64), (8, 64), (16, 64), (32, 128), (64, 256), (128, 512), (256, 1024))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MQARMix(MQAR):
    """The mixture of lengths and pairs behind the recall-memory trade-off. Based, arXiv 2402.18668.

    Training rows have 4 to 64 pairs and up to 256 tokens, filled up with zeros that are not graded;
    tests go to 256 pairs in 1,024 tokens. The score is the mean over the tests.
    """

    length: int = 256
    """T, at least 256."""
    pairs: int = 64
    """Most pairs of a training row; those of `MIX` that have no more are drawn."""
    examples: int | None = 180_000
    """Training examples before they come again; None draws new ones for ever."""

    def check(self) -> None:
        if self.length < 256:
            raise ValueError(f"length must be at least 256, got {self.length}.")
        if self.test_lengths:
            raise ValueError("test_lengths: the mixture has tests of its own; leave it out.")
        if self.pairs < 4:
            raise ValueError(f"pairs must be at least 4, got {self.pairs}.")

    @property
    def chance(self) -> float:
        """Mean over the tests."""
        tests = self.tests().values()
        return sum(test.chance for test in tests) / len(tests)

    def _part(self, pairs: int, length: int) -> MQAR:
        fields = ("vocab_size", "power", "random_non_queries", "passes", "test_examples")
        same = {name: getattr(self, name) for name in fields}
        return MQAR(pairs=pairs, length=length, **same)

    def tests(self) -> dict[str, Task]:
        return {f"pairs_{n}_length_{size}": self._part(n, size) for n, size in MIX_TESTS}

    def make(self, random: np.random.Generator, split: Split) -> Example:
        parts = [part for part in MIX if part[0] <= self.pairs]
        weights = np.array([count for _, _, count in parts], float)
        pairs, length, _ = parts[random.choice(len(parts), p=weights / weights.sum())]
        example = self._part(pairs, length).make(random, split)
        return Example(*(np.pad(x, (0, self.length - length)) for x in example))

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        raise NotImplementedError("A row does not say of which part it is; its tests have oracles.")
