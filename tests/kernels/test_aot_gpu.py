"""Every kernel compiles for an H200, and fits; run by `make prove-gpu`, without a GPU."""

import pytest

from kernels_pallas import aot
from tests.kernels import proofs

if reason := aot.available("gpu"):
    pytest.skip(reason, allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "chip"), proofs.parameters("gpu"))
def test_kernel_compiles_and_fits(case, chip):
    figures = proofs.figures(case, chip)
    assert len(figures["kernels"]) == proofs.expected_kernels(case)
    for kernel in figures["kernels"]:
        assert kernel["shared_bytes"] <= kernel["shared_capacity"]
        assert 0 < kernel["registers"] <= 255
        assert kernel["threads"] * kernel["registers"] <= 65536
