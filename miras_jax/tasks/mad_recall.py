"""MAD's recall tasks: in-context, noisy and fuzzy recall. Poli et al., 2024 (arXiv 2403.17844).

Pairs of a key and a value follow one another, and a key has the same value wherever it comes in a
row. Trained on as text, every token predicted from those before; tested at the values of keys that
were shown before.
"""

import dataclasses

import numpy as np

from miras_jax.tasks.task import Example, Split, Task, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class InContextRecall(Task):
    """In-context recall; with `noise`, noisy recall. MAD, section 3.1.

    Keys are the first half of the tokens that are no noise, values the second. A value is drawn
    for every key, with replacement: two keys may share one. The last pair always repeats a key.
    Chance is a guess among the value tokens.
    """

    length: int = 128
    """T, an even number of at least 4."""
    vocab_size: int = 16
    """Token ids, those of the noise included."""
    noise_tokens: int = 0
    """Token ids, the last ones, that stand only in slots of noise."""
    noise: float = 0.0
    """Probability that a slot but the last is two tokens of noise instead of a pair; at least one
    is kept a pair."""
    examples: int | None = 12_800
    """Training examples before they come again; None draws new ones for ever."""
    test_examples: int = 1280
    """Test examples in all, for each length."""

    def check(self) -> None:
        if self.length < 4 or self.length % 2:
            raise ValueError(f"length must be even and at least 4, got {self.length}.")
        if self.noise_tokens < 0 or self.meaning < 2:
            raise ValueError(
                "vocab_size must be at least 2 more than noise_tokens, which must not be negative: "
                f"got {self.vocab_size} and {self.noise_tokens}."
            )
        if not 0 <= self.noise < 1 or (self.noise and not self.noise_tokens):
            raise ValueError(
                f"noise must be at least 0 and below 1, with noise_tokens where it is not 0: got "
                f"{self.noise} and {self.noise_tokens}."
            )

    @property
    def meaning(self) -> int:
        """Token ids that are no noise."""
        return self.vocab_size - self.noise_tokens

    @property
    def chance(self) -> float:
        return 1 / (self.meaning - self.meaning // 2)

    def make(self, random: np.random.Generator, split: Split) -> Example:
        slots, keys = self.length // 2, self.meaning // 2
        value_of = random.integers(keys, self.meaning, size=keys)
        pairs = np.zeros((slots, 2), np.int64)
        pairs[:, 0] = random.integers(keys, size=slots)
        noise = random.random(slots) < self.noise
        noise[[random.integers(slots - 1), -1]] = False
        pairs[-1, 0] = random.choice(np.unique(pairs[:-1, 0][~noise[:-1]]))
        pairs[:, 1] = value_of[pairs[:, 0]]
        pairs[noise] = random.integers(self.meaning, self.vocab_size, size=(noise.sum(), 2))
        tokens = np.append(pairs.ravel(), 0)  # nothing is asked after the last value
        mask = np.ones(self.length)
        mask[-1] = 0
        if split == "test":
            first = np.unique(np.where(noise, -1, pairs[:, 0]), return_index=True)[1]
            mask[:] = 0
            mask[::2] = ~noise
            mask[2 * first] = 0
        return shown(tokens, mask)

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        answers, values = np.zeros(self.length, np.int64), {}
        for slot, (key, value) in enumerate(tokens[:-1].reshape(-1, 2).tolist()):
            answers[2 * slot] = values.get(key, 0)
            if key < self.meaning:
                values[key] = value
        return answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuzzyRecall(Task):
    """Fuzzy recall: keys and values of one to three tokens. MAD, section 3.1.

    The last token id fills up, at the front; the others are halved into key and value tokens. A key
    is key tokens without a repeat, in order, a value likewise. Every key has the largest size in
    tests. One pair, drawn first, comes in the first part and again at the very end. How long a
    value is cannot be foreseen. Chance is a guess among the value tokens.
    """

    length: int = 128
    """T."""
    vocab_size: int = 16
    """Token ids."""
    key_tokens: int = 3
    """Most tokens of a key, 1 or more."""
    value_tokens: int = 3
    """Most tokens of a value, 1 or more."""
    examples: int | None = 12_800
    """Training examples before they come again; None draws new ones for ever."""
    test_examples: int = 1280
    """Test examples in all, for each length."""

    @property
    def half(self) -> int:
        """Key tokens; value tokens are as many or one more."""
        return (self.vocab_size - 1) // 2

    @property
    def longest(self) -> int:
        """Most tokens of a pair."""
        return self.key_tokens + self.value_tokens

    def check(self) -> None:
        if not 1 <= self.key_tokens <= self.half or not 1 <= self.value_tokens <= self.half:
            raise ValueError(
                f"key_tokens and value_tokens must be 1 to (vocab_size - 1) / 2 = {self.half}, got "
                f"{self.key_tokens} and {self.value_tokens}."
            )
        if self.length <= 3 * self.longest:
            raise ValueError(
                f"length must be above {3 * self.longest}, three of the longest pairs, got "
                f"{self.length}."
            )

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 1 - self.half)

    def make(self, random: np.random.Generator, split: Split) -> Example:
        key_vocabulary = np.arange(self.half)
        value_vocabulary = np.arange(self.half, self.vocab_size - 1)
        most = self.length // 2 + 1
        keys = random.permuted(np.tile(key_vocabulary, (most, 1)), axis=1)
        values = random.permuted(np.tile(value_vocabulary, (most, 1)), axis=1)
        key_sizes = random.integers(1, self.key_tokens + 1, size=most)
        if split == "test":
            key_sizes[:] = self.key_tokens
        value_sizes = random.integers(1, self.value_tokens + 1, size=most)

        def pair(number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
            key, value = keys[number][: key_sizes[number]], values[number][: value_sizes[number]]
            return tuple(key.tolist()), tuple(value.tolist())

        probe, value = pair(0)
        value_of = {probe: value}
        room = self.length - len(probe) - len(value) - self.longest
        place = random.integers(room - self.longest)  # no pair can jump from before it over room
        tokens: list[int] = []
        graded: list[int] = []
        seen = set()

        def write(key: tuple[int, ...], value: tuple[int, ...]) -> None:
            tokens.extend(key + value)
            graded.extend([0] * len(key) + [int(key in seen)] * len(value))
            seen.add(key)

        number = 0
        while len(tokens) < room:
            if len(tokens) >= place and probe not in seen:
                write(probe, value_of[probe])
                continue
            number += 1
            key, value = pair(number)
            write(key, value_of.setdefault(key, value))
        write(probe, value_of[probe])
        filled = self.length + 1 - len(tokens)
        tokens, graded = [self.vocab_size - 1] * filled + tokens, [0] * filled + graded
        mask = np.array(graded)[1:] if split == "test" else np.ones(self.length)
        return shown(np.array(tokens), mask)

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        answers = np.zeros(self.length, np.int64)
        value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
        key, value = (), ()
        for place, token in enumerate(tokens[:-1].tolist()):
            if token < self.half:
                if value:  # a pair is over
                    value_of.setdefault(key, value)
                    key, value = (), ()
                key += (token,)
            elif token < self.vocab_size - 1:
                value += (token,)
            known = value_of.get(key, ())
            if len(value) < len(known):
                answers[place] = known[len(value)]
        return answers
