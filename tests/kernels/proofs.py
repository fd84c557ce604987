"""What the compilers said of the cases of `kernels_pallas/cases.py`, compiled by row on demand."""

import functools
import os
from pathlib import Path

import pytest

from kernels_pallas import aot
from kernels_pallas.cases import Case, select

ROOT = Path(__file__).resolve().parents[2]
BUILDER = f"{ROOT / 'experiments' / 'kernel_cases.py'}:build"

# The rest is compiled where this is set: nightly, by `make kernels` and by hand.
EVERY_TIME = not os.environ.get("MIRAS_PROVE_ALL")


def parameters(backend: str) -> list:
    """Every case and chip as a parameter; a row's cases go to one worker."""
    return [
        pytest.param(case, chip, id=f"{case.name}@{chip}", marks=pytest.mark.xdist_group(case.row))
        for case in select(backend, EVERY_TIME)
        for chip in case.chips
    ]


@functools.cache
def _row(backend: str, row: str) -> dict[str, aot.Result]:
    jobs = [job for case in select(backend, EVERY_TIME, (row,)) for job in case.jobs]
    return aot.prove(jobs, builder=BUILDER, backend=backend)


def figures(case: Case, chip: str) -> dict:
    """The figures of a case; fails with the compiler's words if it did not compile."""
    result = _row(case.backend, case.row)[f"{case.name}@{chip}"]
    assert not result.error, result.error
    return result.figures


def expected_kernels(case: Case) -> int:
    """How many kernels the program of a case has: a gradient runs the forward kernel too."""
    return 2 if case.what == "backward" else 1
