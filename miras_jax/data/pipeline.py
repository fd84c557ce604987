"""Batches of fixed windows over tokens: a flat array, a token set, or several sets by weight.

Window i holds the tokens `[i * window, (i + 1) * window]`: the last token of one window is the
first of the next, so that every token is a target once. Windows of a token set are packed: the
documents lie one after another, and `segment_ids` tell them apart.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from miras_jax.data.rows import Rows
from miras_jax.data.shards import TokenSet

Tokens = np.ndarray | TokenSet


class _Numbered:
    """Rows with their numbers, counted from `first`."""

    def __init__(self, rows: Rows, first: int):
        self._rows, self._first = rows, first

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {**self._rows[index], "index": np.int64(self._first + index)}


class _Windows:
    """Random access to the windows of `tokens` [n]; a tail shorter than a window is left out."""

    def __init__(self, tokens: Tokens, window: int, first: int = 0):
        if window < 1:
            raise ValueError(f"window must be 1 or more, got {window}")
        if tokens.size < window + 1:
            raise ValueError(
                f"the text has {tokens.size} tokens, one window of {window} needs {window + 1}"
            )
        self._tokens = tokens
        self._window = window
        self._first = first

    def __len__(self) -> int:
        return (self._tokens.size - 1) // self._window

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = index * self._window
        stop = start + self._window
        row = {
            "tokens": self._tokens[start : stop + 1].astype(np.int32),
            "index": np.int64(self._first + index),
        }
        if isinstance(self._tokens, TokenSet):
            row["segment_ids"] = self._tokens.segment_ids(start, stop)
        return row


def _source(part: Tokens | Rows, window: int, first: int) -> _Windows | _Numbered:
    return _Numbered(part, first) if isinstance(part, Rows) else _Windows(part, window, first)


def train_iterator(
    tokens: Tokens | Rows | Sequence[tuple[Tokens | Rows, float]],
    *,
    window: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
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
      process_index: this process; it reads the rows `process_index::process_count` of each batch.
      process_count: number of processes; it must divide `batch_size`.

    Returns:
      A Grain iterator of `{"tokens": int32 [rows, window + 1], "index": int64 [rows]}` with rows =
      batch_size / process_count, where `index` numbers the windows, part after part; of token sets
      also `"segment_ids": int32 [rows, window]`, not decreasing in a row, of the tokens that are
      read; of `Rows` what they have. `get_state()` is one integer in a dict, the same on every
      process: the windows that have been read by all of them together. `set_state` resumes exactly
      there, on any number of processes and with any batch size.

    Raises:
      ValueError: a text shorter than one window, or processes that do not divide the batch.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} is no positive multiple of {process_count} processes"
        )
    parts = [(tokens, 1.0)] if isinstance(tokens, Tokens | Rows) else [*tokens]
    sources, first = [], 0
    for part, _ in parts:
        sources.append(_source(part, window, first))
        first += len(sources[-1])
    orders = [
        grain.MapDataset.source(source).seed((seed + number) % 2**32).shuffle().repeat()
        for number, source in enumerate(sources)
    ]
    if len(orders) == 1:
        windows = orders[0]
    else:
        windows = grain.MapDataset.mix(orders, [weight for _, weight in parts])
    batches = grain.experimental.ElasticIterator(
        windows,
        batch_size,
        grain.sharding.ShardOptions(process_index, process_count),
        # Cutting a window is a copy of a few kilobytes: more threads would only take turns.
        read_options=grain.ReadOptions(num_threads=1, prefetch_buffer_size=4),
    )
    return iter(batches)


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
      window].

    Raises:
      ValueError: fewer than two tokens, or a window, batch size or limit below 1.
    """
    if min(window, batch_size, 1 if limit is None else limit) < 1:
        raise ValueError(f"must be 1 or more: {window=}, {batch_size=}, {limit=}")
    if tokens.size < 2:
        raise ValueError(f"the validation text has {tokens.size} tokens, it needs 2 or more")
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
