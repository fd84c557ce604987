"""Batches of fixed windows over a flat array of tokens.

Window i holds the tokens `[i * window, (i + 1) * window]`: the last token of one window is the
first of the next, so that every token is a target once.
"""

from collections.abc import Iterator

import grain
import numpy as np


class _Windows:
    """Random access to the windows of `tokens` [n]; a tail shorter than a window is left out."""

    def __init__(self, tokens: np.ndarray, window: int):
        if window < 1:
            raise ValueError(f"window must be 1 or more, got {window}")
        if tokens.size < window + 1:
            raise ValueError(
                f"the text has {tokens.size} tokens, one window of {window} needs {window + 1}"
            )
        self._tokens = tokens
        self._window = window

    def __len__(self) -> int:
        return (self._tokens.size - 1) // self._window

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = index * self._window
        return {
            "tokens": self._tokens[start : start + self._window + 1].astype(np.int32),
            "index": np.int64(index),
        }


def train_iterator(
    tokens: np.ndarray,
    *,
    window: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Return an endless iterator over shuffled batches of windows.

    Every epoch visits every window once, in an order that depends on `seed` and the epoch alone.
    A batch may span two epochs.

    Args:
      tokens: ids [n], any integer type; may be memory-mapped.
      window: targets in a window.
      batch_size: windows in a batch, over all processes.
      seed: chooses the order.
      process_index: this process; it reads the rows `process_index::process_count` of each batch.
      process_count: number of processes; it must divide `batch_size`.

    Returns:
      A Grain iterator of `{"tokens": int32 [rows, window + 1], "index": int64 [rows]}` with rows =
      batch_size / process_count, where `index` numbers the windows. `get_state()` is one integer in
      a dict, the same on every process: the windows that have been read by all of them together.
      `set_state` resumes exactly there, on any number of processes and with any batch size.

    Raises:
      ValueError: a text shorter than one window, or processes that do not divide the batch.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} is no positive multiple of {process_count} processes"
        )
    windows = grain.MapDataset.source(_Windows(tokens, window)).seed(seed).shuffle().repeat()
    batches = grain.experimental.ElasticIterator(
        windows,
        batch_size,
        grain.sharding.ShardOptions(process_index, process_count),
        # Cutting a window is a copy of a few kilobytes: more threads would only take turns.
        read_options=grain.ReadOptions(num_threads=1, prefetch_buffer_size=4),
    )
    return iter(batches)


def validation_batches(
    tokens: np.ndarray, *, window: int, batch_size: int, limit: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches over `tokens` in reading order, each token after the first a target once.

    Args:
      tokens: ids [n], any integer type.
      window: targets in a window.
      batch_size: windows in a batch.
      limit: stop after this many batches; None goes on to the end of the text.

    Yields:
      `{"tokens": int32 [batch_size, window + 1], "mask": float32 [batch_size, window]}`. The mask
      is 1 for the targets `tokens[:, 1:]` that are text and 0 for the zeros which fill up the last
      batch, so all batches have one shape.

    Raises:
      ValueError: fewer than two tokens, or a window, batch size or limit below 1.
    """
    if min(window, batch_size, 1 if limit is None else limit) < 1:
        raise ValueError(f"must be 1 or more: {window=}, {batch_size=}, {limit=}")
    if tokens.size < 2:
        raise ValueError(f"the validation text has {tokens.size} tokens, it needs 2 or more")
    stride = window * batch_size
    starts = range(0, tokens.size - 1, stride)[:limit]
    return (_batch(tokens[start : start + stride + 1], window, batch_size) for start in starts)


def _batch(piece: np.ndarray, window: int, batch_size: int) -> dict[str, np.ndarray]:
    """Cut up to batch_size * window + 1 tokens into one batch, with its mask."""
    stride = window * batch_size
    padded = np.zeros(stride + 1, np.int32)
    padded[: piece.size] = piece
    rows = np.lib.stride_tricks.sliding_window_view(padded, window + 1)[::window]
    mask = np.arange(stride) < piece.size - 1
    return {
        "tokens": np.ascontiguousarray(rows),
        "mask": mask.reshape(batch_size, window).astype(np.float32),
    }
