"""Rows that are made one by one, not cut from a text: what else an iterator can read."""

import abc

import numpy as np


class Rows(abc.ABC):
    """Random access to rows, each a pure function of its number."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Row `index`: `tokens` int32 `[window + 1]`, of which all but the last are read, and
        optionally `mask` float32 `[window]`, the weights of the targets, `targets` int32
        `[window]`, where they are not the tokens that follow, and `segment_ids` int32 `[window]`;
        the same names and shapes in every row."""
