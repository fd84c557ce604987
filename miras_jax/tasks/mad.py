"""MAD's copying, compression and memorization. Poli et al., 2024 (arXiv 2403.17844)."""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from miras_jax.tasks.task import Example, Split, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """Symbols among blanks, to be repeated in order after a signal. MAD, section 3.1.

    The symbols with blanks before them, the copy token (the last id), then a blank (the last but
    one) for every answer; the answers are not shown. Chance is a guess among the symbols.
    """

    length: int = 256
    """T, at least 2 copied + 1."""
    vocab_size: int = 16
    """Token ids: symbols, blank, copy token."""
    copied: int = 16
    """Symbols to copy."""
    examples: int | None = 12_800
    """Training examples before they come again; None draws new ones for ever."""
    test_examples: int = 1280
    """Test examples in all, for each length."""

    def check(self) -> None:
        if self.vocab_size < 3:
            raise ValueError(f"vocab_size must be at least 3, got {self.vocab_size}.")
        if self.copied < 1 or self.length < 2 * self.copied + 1:
            raise ValueError(
                f"copied must be 1 to (length - 1) / 2 = {(self.length - 1) // 2}, got "
                f"{self.copied}."
            )

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 2)

    def make(self, random: np.random.Generator, split: Split) -> Example:
        blank, copy = self.vocab_size - 2, self.vocab_size - 1
        symbols = random.integers(self.vocab_size - 2, size=self.copied)
        blanks = self.length - 2 * self.copied - 1
        before = np.bincount(random.integers(self.copied, size=blanks), minlength=self.copied)
        tokens = np.full(self.length + 1, blank)
        tokens[np.cumsum(before) + np.arange(self.copied)] = symbols
        tokens[self.copied + blanks] = copy
        targets, mask = np.zeros((2, self.length), np.int64)
        targets[-self.copied :], mask[-self.copied :] = symbols, 1
        return Example(tokens, targets, mask)

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        answers = np.zeros(self.length, np.int64)
        written = tokens[: self.length - self.copied - 1]
        answers[-self.copied :] = written[written < self.vocab_size - 2]
        return answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compression(Task):
    """A row of random symbols to be told from one vector. MAD, section 3.1.

    The last token id ends the row; all tokens are predicted from what the model has at that token,
    by a model with `readout="last"`. Chance is a guess among the symbols; the token at the end is
    known.
    """

    length: int = 32
    """T, the symbols and the end, 2 or more."""
    vocab_size: int = 16
    """Token ids: symbols and the end."""
    examples: int | None = 12_800
    """Training examples before they come again; None draws new ones for ever."""
    test_examples: int = 1280
    """Test examples in all, for each length."""

    readout: ClassVar = "last"

    def check(self) -> None:
        if min(self.length, self.vocab_size) < 2:
            raise ValueError(
                f"length and vocab_size must be at least 2, got {self.length} and "
                f"{self.vocab_size}."
            )

    @property
    def chance(self) -> float:
        return (self.length - 1) / self.length / (self.vocab_size - 1) + 1 / self.length

    def make(self, random: np.random.Generator, split: Split) -> Example:
        tokens = np.append(
            random.integers(self.vocab_size - 1, size=self.length - 1), [self.vocab_size - 1, 0]
        )
        return Example(tokens, tokens[:-1], np.ones(self.length))

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        return tokens[:-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memorization(Task):
    """A fixed map from keys to values, to be learned by heart. MAD, section 3.1.

    A key, the insert token (the last id), a key ...; the value is asked for at the insert token and
    never shown. The map is the same in all examples, of training and of tests, and no value has two
    keys. With the 256 examples of the recipe not every key of a large vocabulary is seen in
    training: at most 98.2, 86.5 and 63.2 % can be expected for 2,048, 4,096 and 8,192 token ids.
    Chance is a guess among the values.
    """

    length: int = 32
    """T, an even number."""
    vocab_size: int = 256
    """Token ids: floor((vocab_size - 1) / 2) keys, as many values or one more, the insert token."""
    map_seed: int = 12345
    """Seed of the map."""
    examples: int | None = 256
    """Training examples before they come again; None draws new ones for ever."""
    test_examples: int = 1280
    """Test examples in all, for each length."""

    def check(self) -> None:
        if self.length % 2:
            raise ValueError(f"length must be even, got {self.length}.")
        if self.vocab_size < 3:
            raise ValueError(f"vocab_size must be at least 3, got {self.vocab_size}.")

    @property
    def keys(self) -> int:
        """Number of keys, the first token ids."""
        return (self.vocab_size - 1) // 2

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 1 - self.keys)

    def make(self, random: np.random.Generator, split: Split) -> Example:
        keys = random.integers(self.keys, size=self.length // 2)
        tokens = np.full(self.length + 1, self.vocab_size - 1)
        tokens[:-1:2] = keys
        targets, mask = np.zeros((2, self.length), np.int64)
        targets[1::2], mask[1::2] = value_map(self.vocab_size, self.map_seed)[keys], 1
        return Example(tokens, targets, mask)

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        """Knows the map, which no row tells."""
        answers = np.zeros(self.length, np.int64)
        answers[1::2] = value_map(self.vocab_size, self.map_seed)[tokens[:-1:2]]
        return answers


@functools.cache
def value_map(vocab_size: int, seed: int) -> np.ndarray:
    """The value of every key of `Memorization`, int64 `[keys]`."""
    keys = (vocab_size - 1) // 2
    return np.random.default_rng(seed).permutation(np.arange(keys, vocab_size - 1))[:keys]
