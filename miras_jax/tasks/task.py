"""What every task is: settings, and examples that are a pure function of them, a seed and an index.

An example is read like text, T tokens in a row, and graded at some of them. Every example has a
stream of random numbers of its own, so that any process can draw any example at any time.
"""

import abc
import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from miras_jax.data.vocabulary import NoText, Vocabulary

Split = Literal["train", "test"]
Arrays = dict[str, np.ndarray]


class Example(NamedTuple):
    """One row.

    Attributes:
      tokens: int `[T + 1]`; the first T are read.
      targets: int `[T]`, the answer at every token that is read. It is the token that follows,
        `tokens[1:]`, but where the recipe does not show the model its answers.
      mask: `[T]`, 1 where the answer is graded, else 0.
      groups: int `[T]`, the group of each graded answer, an index into `Task.groups`; None is 0.
    """

    tokens: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    groups: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """Settings of a task.

    A subclass has `vocab_size`, the number of token ids, as a field or a property.

    Attributes:
      grade: what `accuracy` counts, graded targets or examples of which all targets are right.
      readout: what answers, see `ModelConfig.readout`.
    """

    length: int = 256
    """T, tokens that the model reads in a row."""
    test_lengths: tuple[int, ...] = ()
    """Lengths of the test rows, for length extrapolation; empty is `length`."""
    examples: int | None = None
    """Training examples before they come again; None draws new ones for ever."""
    test_examples: int = 1000
    """Test examples in all, for each length."""

    grade: ClassVar[Literal["target", "example"]] = "target"
    readout: ClassVar[Literal["token", "last"]] = "token"

    def __post_init__(self):
        for name in ("length", "examples", "test_examples"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}.")
        self.check()
        self.tests()  # each checks its own length

    @abc.abstractmethod
    def check(self) -> None:
        """Checks the settings.

        Raises:
          ValueError: the recipe cannot be carried out with them.
        """

    @abc.abstractmethod
    def make(self, random: np.random.Generator, split: Split) -> Example:
        """Draws an example."""

    @property
    @abc.abstractmethod
    def chance(self) -> float:
        """Accuracy of a guess in the admissible set, 0 to 1; the class says which set it is."""

    @abc.abstractmethod
    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        """Answers, int `[T]`, as they can be read from `tokens` int `[T + 1]` by the recipe; 0
        where nothing is asked. Where the model is told the answers afterwards, those at t come
        from the tokens up to t alone."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of graded targets that have an accuracy of their own; may be none."""
        return ()

    def tests(self) -> "dict[str, Task]":
        """What is tested by name; one task without a name where there is one length."""
        if not self.test_lengths:
            return {"": self}
        return {
            f"length_{length}": dataclasses.replace(self, length=length, test_lengths=())
            for length in self.test_lengths
        }

    @property
    def vocabulary(self) -> dict[str, Any]:
        """What stands for the tokenizer of a run, see `Vocabulary.describe`."""
        return Vocabulary(NoText(self.vocab_size), "task").describe()

    def describe(self) -> dict[str, Any]:
        """The settings as plain values; two tasks with the same have the same examples."""
        return {"task": type(self).__name__, **dataclasses.asdict(self)}

    def sample(self, seed: int, index: int, split: Split = "train") -> Arrays:
        """Example `index` (0 or more) of a seed (0 up to 2^62).

        Returns:
          `tokens` int32 `[T + 1]`, `targets` int32 `[T]`, `mask` float32 `[T]` and `groups` int32
          `[T]`, see `Example`.

        Raises:
          ValueError: there is no such split.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split must be train or test, got {split!r}.")
        # The first word of the key tells seeds and splits apart: none shares a stream.
        key = np.array([2 * seed + (split == "test"), index], np.uint64)
        example = self.make(np.random.Generator(np.random.Philox(key=key)), split)
        groups = np.zeros(self.length) if example.groups is None else example.groups
        return {
            "tokens": np.asarray(example.tokens, np.int32),
            "targets": np.asarray(example.targets, np.int32),
            "mask": np.asarray(example.mask, np.float32),
            "groups": np.asarray(groups, np.int32),
        }

    def batch(self, seed: int, start: int, count: int, split: Split = "train") -> Arrays:
        """The examples `start .. start + count - 1`, stacked."""
        rows = [self.sample(seed, index, split) for index in range(start, start + count)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def shown(tokens: np.ndarray, mask: np.ndarray, groups: np.ndarray | None = None) -> Example:
    """An example in which every answer is the token that follows."""
    return Example(tokens, tokens[1:], mask, groups)


class Bins(NamedTuple):
    """Ranges that double, for numbers from 1 to `limit`: 1-32, 33-64, 65-128 ..."""

    prefix: str
    limit: int
    first: int = 32

    @property
    def edges(self) -> list[int]:
        """The last number of each range."""
        edges = [self.first]
        while edges[-1] < self.limit:
            edges.append(2 * edges[-1])
        return edges

    @property
    def names(self) -> tuple[str, ...]:
        """`PREFIX_33-64` for each range."""
        starts = [1, *(edge + 1 for edge in self.edges)]
        return tuple(f"{self.prefix}_{a}-{b}" for a, b in zip(starts, self.edges, strict=False))

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The index of the range of each number."""
        return np.searchsorted(self.edges, numbers)
