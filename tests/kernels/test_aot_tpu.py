"""Every kernel compiles for TPUs, and fits; run by `make prove-tpu`, without a TPU."""

import pytest

from kernels_pallas import aot
from tests.kernels import proofs

if reason := aot.available("tpu"):
    pytest.skip(reason, allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "chip"), proofs.parameters("tpu"))
def test_kernel_compiles_and_fits(case, chip):
    figures = proofs.figures(case, chip)
    assert len(figures["kernels"]) == proofs.expected_kernels(case)
    for kernel in figures["kernels"]:
        assert 0 < kernel["vmem_bytes"] <= kernel["vmem_capacity"]
        # A loop over the grid, perhaps one over a group's chunks, none inside a chunk: then the
        # innermost loop's length is a chunk's.
        assert len(kernel["bundles"]) in (2, 3)
        assert kernel["units"]["MXU"] > 0
    if case.what == "decode":
        assert figures["alias_bytes"] > 0, "the state is not updated in place"


def test_crash_is_laid_to_its_case_and_the_rest_goes_on(tmp_path):
    builder = tmp_path / "builder.py"
    builder.write_text(
        "import os, signal\n"
        "def build(case):\n"
        "    import jax, jax.numpy as jnp\n"
        "    if case == 'crash': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if case == 'error': raise ValueError('no such kernel')\n"
        "    return jnp.sin, (jax.ShapeDtypeStruct((8, 128), jnp.float32),)\n"
    )
    results = aot.prove(
        ["first@v5e", "crash@v5e", "error@v5e", "chip@v9", "last@v6e"],
        builder=f"{builder}:build",
        backend="tpu",
    )
    assert results["first@v5e"].figures["argument_bytes"] == 8 * 128 * 4
    assert results["last@v6e"].figures["kernels"] == []
    assert "SIGSEGV" in results["crash@v5e"].error
    assert "no such kernel" in results["error@v5e"].error
    assert "v9" in results["chip@v9"].error
