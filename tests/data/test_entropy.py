"""Entropies: exact on small texts, and the known figures of a real one."""

from collections import Counter
from itertools import pairwise
from math import log2
from pathlib import Path

import pytest

from miras_jax.data import order0_entropy, order1_entropy


def test_exact_values() -> None:
    assert order0_entropy("aaaa") == 0.0
    assert order0_entropy("abab") == 1.0
    assert order0_entropy("abcd" * 3) == 2.0
    assert order1_entropy("abab") == pytest.approx(0.0, abs=1e-12)
    # After "a" come b and c equally often; after b and c always a.
    assert order1_entropy("abacabaca") == pytest.approx(0.5)


def test_bytes_are_counted_not_characters() -> None:
    assert order0_entropy("éé") == 1.0


def test_too_short_text() -> None:
    with pytest.raises(ValueError, match="1 bytes or more, got 0"):
        order0_entropy("")
    with pytest.raises(ValueError, match="2 bytes or more, got 1"):
        order1_entropy("a")


def test_figures_of_a_real_text(shared: Path) -> None:
    novels = sorted((shared / "data/novels/valid").glob("*.txt"))
    text = "".join(path.read_text("utf-8") for path in novels)
    assert order0_entropy(text) == pytest.approx(4.49, abs=0.005)
    assert order1_entropy(text) == pytest.approx(3.45, abs=0.005)


def test_order1_is_the_mean_surprise_of_the_pairs() -> None:
    data = Path(__file__).read_bytes()
    pairs, before = Counter(pairwise(data)), Counter(data[:-1])
    surprise = -sum(n * log2(n / before[first]) for (first, _), n in pairs.items())
    assert order1_entropy(data.decode()) == pytest.approx(surprise / (len(data) - 1), rel=1e-12)
