"""A needle in a haystack: one sentence to be found again in a long text. Hsieh et al., 2024.

The sentences are those of RULER (arXiv 2404.06654), so that scores can be compared. Departs: the
answer is taken right behind the prompt and must be exact, where RULER looks for it anywhere in 128
tokens; sentences of an essay end at ". ", "! " or "? "; the lists of words are others.
"""

import bisect
import dataclasses
import functools
import hashlib
import re
import uuid
from typing import Any, ClassVar, Literal

import numpy as np

from miras_jax.data import load_corpus, load_vocabulary
from miras_jax.tasks.task import Example, Split, Task
from miras_jax.tasks.words import ADJECTIVES, NOUNS

OPENING = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it."
    " I will quiz you about the {kind} afterwards.\n"
)
QUESTION = "\nWhat is the special magic {kind} for {key} mentioned in the provided text?"
ANSWER = " The special magic {kind} for {key} mentioned in the provided text is"
NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = 40  # places in an essay, evenly from its start to its end
QUARTERS = ("depth_0-25", "depth_25-50", "depth_50-75", "depth_75-100")

Kind = Literal["number", "word", "uuid"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needle(Task):
    """One needle, one question (S-NIAH). RULER, section 3.

    The haystack is as long as fits; behind the answer the row is filled up with separators. An
    example counts as right where every token of the answer is the likeliest one, which is what
    greedy generation would give. Groups are quarters of the haystack. Chance is a guess of the
    whole value.
    """

    length: int = 1024
    """T, prompt and answer together."""
    haystack: Literal["noise", "essay", "needle"] = "noise"
    """One line of five sentences again and again; the text of `text`; or other needles, a line
    each."""
    key: Literal["word", "uuid"] = "word"
    """What the needle is called by: an adjective and a noun, or a UUID."""
    value: Kind = "number"
    """What is asked for: seven digits, an adjective and a noun, or a UUID."""
    text: str | None = None
    """Text of an essay: a file or a folder, read from its start and again where it is too short."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a `tokenizer.json` or SentencePiece `.model`."""
    test_examples: int = 500
    """Test examples in all, for each length."""

    grade: ClassVar = "example"

    def check(self) -> None:
        choices = {
            "haystack": ("noise", "essay", "needle"),
            "key": ("word", "uuid"),
            "value": ("number", "word", "uuid"),
        }
        for name, known in choices.items():
            if (choice := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be {', '.join(known)}, got {choice!r}.")
        if (self.text is None) == (self.haystack == "essay"):
            raise ValueError(
                "a haystack of essays needs text=FILE, and others take none: got "
                f"haystack={self.haystack} and text={self.text}."
            )
        least = len(self._tokens(self._prompt("x" * 36, " ") + " " + "x" * 36))
        if self.length < least + 200:
            raise ValueError(
                f"length must be at least {least + 200} for the question and a needle, got "
                f"{self.length}."
            )

    @property
    def vocab_size(self) -> int:
        """That of the tokenizer."""
        return _tokenizer(self.tokenizer).vocab_size

    @property
    def vocabulary(self) -> dict[str, Any]:
        # The file of another vocabulary is not kept with the run.
        if self.tokenizer == "bytes":
            return load_vocabulary(self.tokenizer).describe()
        return super().vocabulary

    @property
    def chance(self) -> float:
        words = len(ADJECTIVES) * len(NOUNS)
        # A random UUID has 122 free bits.
        return 1 / {"number": 9 * 10**6, "word": words, "uuid": 2**122}[self.value]

    @property
    def groups(self) -> tuple[str, ...]:
        return QUARTERS

    def describe(self) -> dict[str, Any]:
        found = super().describe()
        found["tokenizer"] = load_vocabulary(self.tokenizer).describe()
        if self.text is not None:
            found["text"] = hashlib.sha256(" ".join(_words(self.text)).encode()).hexdigest()
        return found

    def make(self, random: np.random.Generator, split: Split) -> Example:
        key, value = draw(random, self.key), draw(random, self.value)
        needle = NEEDLE.format(kind=self.value, key=key, value=value)
        answer = self._tokens(f" {value}")
        room = self.length + 1 - len(answer)
        depth = random.random()
        lines = self._lines(random, key)

        def prompt(size: int) -> tuple[str, float]:
            text, at = self._hide(needle, lines, size, depth)
            return self._prompt(key, text), at

        # The first size that no longer fits, less one.
        sizes = range(1, len(lines) + 1)
        size = bisect.bisect_right(sizes, room, key=lambda n: len(self._tokens(prompt(n)[0])))
        if not size:
            raise ValueError(f"length {self.length} is too short for this haystack.")
        text, at = prompt(size)
        asked = self._tokens(text)
        tokens = np.full(self.length + 1, _tokenizer(self.tokenizer).separator)
        tokens[: len(asked)] = asked
        end = len(asked) + len(answer)
        tokens[len(asked) : end] = answer
        mask = np.zeros(self.length)
        mask[len(asked) - 1 : end - 1] = 1
        return Example(tokens, tokens[1:], mask, np.full(self.length, min(int(4 * at), 3)))

    def oracle(self, tokens: np.ndarray) -> np.ndarray:
        tokenizer = _tokenizer(self.tokenizer)
        text = tokenizer.decode(tokens)
        mark = ANSWER.format(kind=self.value, key="\0").split("\0")
        end = text.rindex(mark[1]) + len(mark[1])
        key = text[text.rindex(mark[0]) + len(mark[0]) : end - len(mark[1])]
        value = re.search(re.escape(f"for {key} is: ") + r"([\w-]+)\.", text)[1]
        answer, start = self._tokens(f" {value}"), len(self._tokens(text[:end])) - 1
        answers = np.zeros(self.length, np.int64)
        answers[start : start + len(answer)] = answer
        return answers

    def _tokens(self, text: str) -> np.ndarray:
        return _tokenizer(self.tokenizer).encode(text)

    def _prompt(self, key: str, context: str) -> str:
        words = {"kind": self.value, "key": key}
        opening, question = OPENING.format(**words), QUESTION.format(**words)
        return f"{opening}{context}{question}{ANSWER.format(**words)}"

    def _lines(self, random: np.random.Generator, asked: str) -> list[str]:
        """What the haystack is made of: lines, or the words of an essay; more than can fit. No
        other needle has the key that is asked for."""
        if self.haystack == "noise":
            return [NOISE] * self.length
        if self.haystack == "essay":
            words = _words(self.text)
            return [*words] * -(-self.length // len(words))
        # A needle has more than ten tokens in every vocabulary.
        count = self.length // 10
        pairs = [(draw(random, self.key), draw(random, self.value)) for _ in range(count)]
        return [
            NEEDLE.format(kind=self.value, key=key, value=value)
            for key, value in pairs
            if key != asked
        ]

    def _hide(self, needle: str, lines: list[str], size: int, depth: float) -> tuple[str, float]:
        """Puts the needle among the first `size` lines or words at `depth`, 0 up to 1; returns the
        text and the part of the haystack before it."""
        parts, between = lines[:size], "\n"
        if self.haystack == "essay":
            parts, between = re.split(r"(?<=[.!?]) ", " ".join(parts)), " "
            place = int(len(parts) * round(int(depth * DEPTHS) * 100 / (DEPTHS - 1)) / 100)
        else:
            place = int(depth * len(parts))
        return between.join([*parts[:place], needle, *parts[place:]]), place / len(parts)


def draw(random: np.random.Generator, kind: Kind) -> str:
    """Draws a key or a value."""
    if kind == "number":
        return str(random.integers(10**6, 10**7))
    if kind == "uuid":
        return str(uuid.UUID(bytes=random.bytes(16), version=4))
    adjective, noun = random.integers((len(ADJECTIVES), len(NOUNS)))
    return f"{ADJECTIVES[adjective]}-{NOUNS[noun]}"


@functools.cache
def _tokenizer(name: str):
    return load_vocabulary(name).tokenizer


@functools.cache
def _words(path: str) -> list[str]:
    """The words of a text: a file, or the files of a folder."""
    corpus, tokenizer = load_corpus(path), _tokenizer("bytes")
    ids = np.concatenate([corpus.train, corpus.validation])
    ids[ids == tokenizer.separator] = ord("\n")
    return tokenizer.decode(ids).split()
