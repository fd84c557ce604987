"""What an evaluator finds: figures, their standard errors and what was counted."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Result:
    """The findings of one evaluator on one model.

    Attributes:
      figures: by name; infinite where an exponential has no finite value.
      errors: standard errors of some of them, by the same names.
      counts: what they are taken over: tokens, bytes, items.
      curves: lists, of which one usually says what the others run over.
    """

    figures: dict[str, float]
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    counts: dict[str, int | float] = dataclasses.field(default_factory=dict)
    curves: dict[str, list[Any]] = dataclasses.field(default_factory=dict)


def exponential(x: float) -> float:
    """exp(x), infinite where it is too large for a float."""
    return math.exp(x) if x < 700 else math.nan if math.isnan(x) else math.inf


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Of the mean of independent values, from their sample variance; NaN of fewer than two."""
    values = np.asarray(values, float)
    return float(np.std(values, ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan


def ratio_error(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Standard error of sum(numerators) / sum(denominators) over independent pairs, to first order;
    NaN of fewer than two."""
    count, total = numerators.size, denominators.sum()
    if count < 2:
        return math.nan
    residuals = numerators - numerators.sum() / total * denominators
    return float(math.sqrt(count / (count - 1) * np.sum(residuals**2)) / total)


def known(errors: dict[str, float]) -> dict[str, float]:
    """Those that could be estimated."""
    return {name: x for name, x in errors.items() if math.isfinite(x)}
