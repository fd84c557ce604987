"""Batches of fixed windows over tokens: a flat array, a token set, or several sets by weight.

Window i holds the tokens `[i * window, (i + 1) * window]`: the last token of one window is the
first of the next, so that every token is a target once. Windows of a token set are packed: the
documents lie one after another, and `segment_ids` tell them apart.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from miras_jax.data import completions
from miras_jax.data.rows import Rows
from miras_jax.data.shards import TokenSet

Tokens = np.ndarray | TokenSet


class _Windows:
    """Random access to the windows of `tokens` [n]; a tail shorter than a window is left out."""

    def __init__(self, tokens: Tokens, window: int, masked: bool = False):
        if window < 1:
            raise ValueError(f"window must be 1 or more, got {window}")
        if tokens.size < window + 1:
            raise ValueError(
                f"the text has {tokens.size} tokens, one window of {window} needs {window + 1}"
            )
        self._tokens = tokens
        self._window = window
        self._masked = masked

    def __len__(self) -> int:
        return (self._tokens.size - 1) // self._window

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = index * self._window
        stop = start + self._window
        row = {"tokens": self._tokens[start : stop + 1].astype(np.int32)}
        if isinstance(self._tokens, TokenSet):
            row["segment_ids"] = self._tokens.segment_ids(start, stop)
        if self._masked:
            row["mask"] = np.ones(self._window, np.float32)
        return row


class Batches(Iterator[dict[str, np.ndarray]]):
    """An endless iterator whose place is one integer, the same on every process.

    Every process follows the order of the whole batch, which costs it numbers alone, and reads the
    windows of its own rows.
    """

    def __init__(
        self,
        order: grain.MapDataset,
        parts: Sequence[Sequence[dict[str, np.ndarray]]],
        batch_size: int,
        rows: Sequence[int],
    ):
        self._order, self._parts = order, parts
        self._batch_size, self._rows = batch_size, list(rows)
        self._firsts = np.cumsum([0, *map(len, parts)])
        self._next = 0
        self._iterator: grain.DatasetIterator | None = None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            batches = self._order[self._next :].batch(self._batch_size).map(self._read)
            # Cutting a window is a copy of a few kilobytes: more threads would only take turns.
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
            self._iterator = iter(batches.to_iter_dataset(options))
        batch = next(self._iterator)
        self._next += self._batch_size
        return batch

    def _read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        parts = np.searchsorted(self._firsts, index, side="right") - 1
        places = index - self._firsts[parts]
        rows = [self._parts[parts[row]][int(places[row])] for row in self._rows]
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {**stacked, "index": index}

    def get_state(self) -> dict[str, int]:
        """Windows that have been read by all processes together."""
        return {"global_next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a place that `get_state` gave."""
        self.close()
        self._next = state["global_next_index"]

    def close(self) -> None:
        """Ends the thread that reads ahead."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def is_completions(tokens: Tokens) -> bool:
    """Whether they are prompts with completions, whose rows `completions` makes."""
    return isinstance(tokens, TokenSet) and tokens.completions


def count_rows(tokens: Tokens, window: int) -> int:
    """Rows of `window` targets that `tokens` give in an epoch."""
    if is_completions(tokens):
        return len(completions.ExampleRows(tokens, window))
    return max(tokens.size - 1, 0) // window


def _source(part: Tokens | Rows, window: int, masked: bool) -> Sequence[dict[str, np.ndarray]]:
    """The rows of a part."""
    if isinstance(part, Rows):
        return part
    if is_completions(part):
        return completions.ExampleRows(part, window)
    return _Windows(part, window, masked)


def train_iterator(
    tokens: Tokens | Rows | Sequence[tuple[Tokens | Rows, float]],
    *,
    window: int,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
) -> Batches:
    """Return an endless iterator over shuffled batches of windows.

    Every epoch visits every window once, in an order that depends on `seed` and the epoch alone.
    A batch may span two epochs. Of several parts, each has its own epochs, and windows are taken
    from them by weight, evenly spread: of n in a row, a part of share p gives n p, within 1 %.

    Args:
      tokens: ids [n], any integer type, may be memory-mapped; a token set; `Rows`; or several with
        weights above 0, of which the sum does not matter.
      window: targets in a window.
      batch_size: windows in a batch, over all processes.
      seed: chooses the order.
      rows: rows of each batch that are read, where several processes share it; None reads all.

    Returns:
      An iterator of `{"tokens": int32 [rows, window + 1], "index": int64 [batch_size]}`, where
      `index` numbers the windows of the whole batch, part after part; of token sets also
      `"segment_ids": int32 [rows, window]`, not decreasing in a row, of the tokens that are read;
      where a set is of prompts with completions, `"mask": float32 [rows, window]`, the weights of
      the targets; of `Rows` what they have. `get_state()` is one integer in a dict, the same on
      every process: the windows that have been read by all of them together. `set_state` resumes
      exactly there, on any number of processes and with any batch size.

    Raises:
      ValueError: a text shorter than one window, or rows that the batch does not have.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    rows = range(batch_size) if rows is None else rows
    if not rows or min(rows) < 0 or max(rows) >= batch_size:
        raise ValueError(f"rows must name some of the {batch_size} rows of a batch, got {rows}")
    parts = [(tokens, 1.0)] if isinstance(tokens, Tokens | Rows) else [*tokens]
    masked = any(is_completions(part) for part, _ in parts)
    sources, orders, first = [], [], 0
    for number, (part, _) in enumerate(parts):
        sources.append(_source(part, window, masked))
        numbers = grain.MapDataset.range(first, first + len(sources[-1]))
        # Without a number of epochs the length is the largest integer, of which grain cannot count
        # the batches of one row.
        epochs = 2**60 // len(sources[-1])
        orders.append(numbers.seed((seed + number) % 2**32).shuffle().repeat(epochs))
        first += len(sources[-1])
    if len(orders) == 1:
        windows = orders[0]
    else:
        windows = grain.MapDataset.mix(orders, [weight for _, weight in parts])
    return Batches(windows, sources, batch_size, rows)


def validation_batches(
    tokens: Tokens, *, window: int, batch_size: int, limit: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches over `tokens` in reading order, each token after the first a target once.

    Args:
      tokens: ids [n], any integer type, or a token set.
      window: targets in a window.
      batch_size: windows in a batch.
      limit: stop after this many batches; None goes on to the end of the text.

    Yields:
      `{"tokens": int32 [batch_size, window + 1], "mask": float32 [batch_size, window]}`. The mask
      is 1 for the targets `tokens[:, 1:]` that are text and 0 for the zeros which fill up the last
      batch, so all batches have one shape. Of a token set also `"segment_ids"`, int32 [batch_size,
      window]. Of prompts with completions the mask is 1 for the targets that are learned.

    Raises:
      ValueError: fewer than two tokens, or a window, batch size or limit below 1.
    """
    if min(window, batch_size, 1 if limit is None else limit) < 1:
        raise ValueError(f"must be 1 or more: {window=}, {batch_size=}, {limit=}")
    if tokens.size < 2:
        raise ValueError(f"the validation text has {tokens.size} tokens, it needs 2 or more")
    if is_completions(tokens):
        return completions.batches(completions.ExampleRows(tokens, window), batch_size, limit)
    stride = window * batch_size
    starts = range(0, tokens.size - 1, stride)[:limit]
    return (_batch(tokens, start, window, batch_size) for start in starts)


def _batch(tokens: Tokens, start: int, window: int, batch_size: int) -> dict[str, np.ndarray]:
    """Cut up to batch_size * window + 1 tokens from `start` on into one batch, with its mask."""
    stride = window * batch_size
    piece = tokens[start : start + stride + 1]
    padded = np.zeros(stride + 1, np.int32)
    padded[: piece.size] = piece
    rows = np.lib.stride_tricks.sliding_window_view(padded, window + 1)[::window]
    mask = np.arange(stride) < piece.size - 1
    batch = {
        "tokens": np.ascontiguousarray(rows),
        "mask": mask.reshape(batch_size, window).astype(np.float32),
    }
    if isinstance(tokens, TokenSet):
        read = piece.size - 1
        ids = np.pad(tokens.segment_ids(start, start + read), (0, stride - read), mode="edge")
        batch["segment_ids"] = ids.reshape(batch_size, window)
    return batch
