"""Prompts with completions as rows: whole examples one after another, loss on completions alone.

An example is a separator, its prompt and its completion. What is learned is the completion and the
separator after it, which says that it has ended; the row is filled up with separators of no weight.
No example is cut in two: one that is longer than a row is cut at the row's end, and left out where
its prompt already fills the row.
"""

from collections.abc import Iterator

import numpy as np

from miras_jax.data.shards import TokenSet


class ExampleRows:
    """Random access to rows of `window` targets; each has the examples that fit, in their order.

    Attributes:
      examples: examples in all.
      cut: those of which the end is missing.
      left_out: those whose prompt leaves no place for a target.
    """

    def __init__(self, tokens: TokenSet, window: int):
        if window < 1:
            raise ValueError(f"window must be 1 or more, got {window}")
        self._tokens, self._window = tokens, window
        self._separator = tokens.manifest["tokenizer"]["separator"]
        table = tokens.examples()
        fits = table[2] < window
        self.examples, self.left_out = table.shape[1], int(np.count_nonzero(~fits))
        self._places, self._lengths, self._prompts, self._bytes = table[:, fits]
        self.cut = int(np.count_nonzero(self._lengths > window))
        # Tokens read before each example, and at the end; then the first example of each row.
        read = np.concatenate([[0], np.cumsum(np.minimum(self._lengths, window))])
        starts = [0] if self._lengths.size else []
        while starts and starts[-1] < self._lengths.size:
            after = np.searchsorted(read, read[starts[-1]] + window, side="right") - 1
            starts.append(int(after))
        self._starts = np.asarray(starts, np.int64)

    def __len__(self) -> int:
        return max(len(self._starts) - 1, 0)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `tokens` int32 [window + 1], `mask` float32 [window], 1 for the targets that are
        learned, and `segment_ids` int32 [window]."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        window, begin, end = self._window, *self._starts[index : index + 2]
        tokens = np.full(window + 1, self._separator, np.int32)
        mask, segments = np.zeros(window, np.float32), np.zeros(window, np.int32)
        at = 0
        for number, example in enumerate(range(begin, end)):
            place, length = int(self._places[example]), int(self._lengths[example])
            piece = self._tokens[place : place + min(length, window + 1)]
            tokens[at : at + piece.size] = piece
            # Target i is token i + 1: from the completion's first token to the separator after it.
            mask[at + self._prompts[example] : at + length] = 1
            segments[at : at + length] = number
            at += length
        segments[at:] = end - begin
        return {"tokens": tokens, "mask": mask, "segment_ids": segments}

    def text_bytes(self, targets: int) -> float:
        """Bytes of completions that the first `targets` targets of weight stand for, at the end of
        a row; of an example that is cut each token counts alike."""
        whole = self._lengths - self._prompts  # with the separator after it
        kept = np.minimum(self._lengths, self._window) - self._prompts
        found = self._bytes * np.minimum(kept / np.maximum(whole - 1, 1), 1)
        before = [np.concatenate([[0], np.cumsum(x)])[self._starts] for x in (kept, found)]
        return float(np.interp(targets, *before))

    def note(self) -> str:
        """Says how many examples do not fit into a row; empty where all do."""
        if not self.cut + self.left_out:
            return ""
        return (
            f"{self._tokens.folder}: of {self.examples:,} examples {self.cut:,} are cut at the end"
            f" of the window of {self._window:,} tokens, and {self.left_out:,} left out, whose"
            " prompts fill it"
        )


def batches(
    rows: ExampleRows, batch_size: int, limit: int | None
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of rows in their order; the last is filled up with rows of no weight."""
    for start in range(0, len(rows), batch_size)[:limit]:
        found = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        empty = {**found[-1], "mask": np.zeros_like(found[-1]["mask"])}
        found += [empty] * (batch_size - len(found))
        names = ("tokens", "mask", "segment_ids")
        yield {name: np.stack([row[name] for row in found]) for name in names}
