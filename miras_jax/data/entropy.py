"""Empirical entropies of a text: the floors that a trained model has to beat.

A model that knows only how often each byte occurs cannot do better on the text than its order-0
entropy; one that also sees the byte before cannot do better than order 1. Both are measured on
the text itself, so they favour the floor.
"""

import numpy as np


def _entropy(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution proportional to `counts`, integers of any shape."""
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log2(p)))


def _bytes(text: str, at_least: int) -> np.ndarray:
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    if data.size < at_least:
        raise ValueError(f"the entropy needs a text of {at_least} bytes or more, got {data.size}")
    return data


def order0_entropy(text: str) -> float:
    """Return H(X), the entropy of single UTF-8 bytes, in bits per byte.

    Raises ValueError for an empty text.
    """
    return _entropy(np.bincount(_bytes(text, at_least=1)))


def order1_entropy(text: str) -> float:
    """Return H(X_t | X_{t-1}), the entropy of a byte given the one before, in bits per byte.

    Plug-in estimate H(X_{t-1}, X_t) - H(X_{t-1}) over the pairs of the text. Raises ValueError for
    a text of fewer than two bytes.
    """
    data = _bytes(text, at_least=2)
    pairs = np.bincount(data[:-1].astype(np.int32) * 256 + data[1:], minlength=65536)
    return _entropy(pairs) - _entropy(pairs.reshape(256, 256).sum(axis=1))
