"""What is left for the night: cases that others of the same kind stand for at every change."""

from collections.abc import Collection, Iterable

import pytest

# A model of each kind of memory and layer.
OF_A_KIND = (
    *("yaad", "gated_deltanet", "transformer", "gla", "longhorn", "rwkv7", "delta_product"),
    *("mesanet", "titans", "moneta", "memora", "lact", "ttt_mlp"),
)
# Those of them that differ most, where a case takes seconds.
FEW = ("yaad", "gated_deltanet", "transformer", "rwkv7", "mesanet", "memora", "lact", "ttt_mlp")


def nightly_but(cases: Iterable, kept: Collection) -> list:
    """The cases as parameters; those that are not `kept` run in `make nightly` alone."""
    return [
        case
        if case in kept
        else pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.nightly
        )
        for case in cases
    ]
