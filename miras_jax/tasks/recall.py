"""What the tasks of multi-query recall share: pairs come first, queries lie behind them."""

import numpy as np

from miras_jax.tasks.task import Bins, Example


def draw(random: np.random.Generator, count: int, first: int, last: int) -> np.ndarray:
    """Draws `count` distinct tokens of first .. last, int64, in random order."""
    return first + random.choice(last - first + 1, count, replace=False)


def draw_pairs(
    random: np.random.Generator, count: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys of 1 .. V/2 - 1 and distinct values of V/2 .. V - 1, `[count]` each."""
    half = vocab_size // 2
    return draw(random, count, 1, half - 1), draw(random, count, half, vocab_size - 1)


def check_pairs(count: int, vocab_size: int) -> None:
    """Raises ValueError where there are not so many distinct keys."""
    if not 1 <= count <= vocab_size // 2 - 1:
        raise ValueError(
            f"pairs must be 1 to vocab_size / 2 - 1 = {vocab_size // 2 - 1}, got {count}."
        )


def check_room(length: int, written: int, queries: int, width: int = 2) -> None:
    """Raises ValueError where the queries do not fit behind what is written."""
    if written + width * queries > length:
        raise ValueError(
            f"length must be at least {written + width * queries} for {written} tokens that are "
            f"written and {queries} queries of {width} tokens, got {length}."
        )


def draw_slots(random: np.random.Generator, slots: int, count: int, power: float) -> np.ndarray:
    """Draws `count` distinct slots of 0 .. slots - 1, one after another without replacement, slot i
    with weight (i + 1)^(power - 1)."""
    # The largest of log weights with Gumbel noise are such a draw.
    scores = (power - 1) * np.log(np.arange(1, slots + 1)) + random.gumbel(size=slots)
    return np.argsort(-scores)[:count]


def ask(
    random: np.random.Generator,
    written: np.ndarray,
    queries: np.ndarray,
    answers: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    length: int,
    power: float,
    width: int = 2,
    vocab_size: int | None = None,
) -> Example:
    """Puts the queries into slots behind what is written.

    The answer is asked for at a query's last token and never shown: the rest of its slot, like all
    slots without a query, is filled up.

    Args:
      random: of the example.
      written: tokens `[n]`.
      queries: tokens `[queries, tokens of a query]`.
      answers: tokens `[queries]`.
      groups: int `[queries]`; None is the distance, see `distances`.
      length: T.
      power: of the weights, see `draw_slots`.
      width: tokens of a slot.
      vocab_size: of the random tokens to fill up with; None fills up with 0.
    """
    asked = queries.shape[1]
    slots = draw_slots(random, (length - len(written)) // width, len(queries), power)
    starts = len(written) + width * slots
    places = starts[:, None] + np.arange(asked)
    tokens = np.zeros(length + 1, np.int64)
    if vocab_size is not None:
        tokens[len(written) : length] = random.integers(vocab_size, size=length - len(written))
    tokens[: len(written)] = written
    tokens[places] = queries
    targets, mask, of_token = (np.zeros(length, np.int64) for _ in range(3))
    at = places[:, -1]
    targets[at], mask[at] = answers, 1
    if groups is None:  # how far back the last of what the query asks for was written
        last = {token: place for place, token in enumerate(written.tolist())}
        back = at - np.array([last[answer] for answer in answers.tolist()])
        groups = distances(length).of(back)
    of_token[at] = groups
    return Example(tokens, targets, mask, of_token)


def distances(length: int) -> Bins:
    """The groups by tokens between a query and the value that it asks for."""
    return Bins("distance", length)


def values_by_key(written: np.ndarray, keys: int = 1) -> dict[tuple[int, ...], list[int]]:
    """All values of every key, in the order in which they were written.

    Args:
      written: tokens, entries of `keys` tokens of the key and one of the value.
      keys: tokens of a key.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for *key, value in written.reshape(-1, keys + 1).tolist():
        found.setdefault(tuple(key), []).append(value)
    return found
