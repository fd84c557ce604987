"""The experiments that measure kernels: their errors, their counts and their rule that nothing is
timed unchecked."""

import json
import sys
from pathlib import Path

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
import miras_jax as mj
from miras_jax.devices import chip_of

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "experiments"))  # scripts import each other by their plain names

import bench_kernels  # noqa: E402
import kernel_errors  # noqa: E402
import kernel_tables  # noqa: E402
import kernel_traffic  # noqa: E402
from kernel_ops import OPS, SMALL, Op  # noqa: E402
from rounding import rounded  # noqa: E402

TINY = Op("gla", "decays by channel", 2, 64, 2, 16, "float32", 16)


def bfloat16(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))


def two_matrices():
    rng = np.random.default_rng(0)
    return (np.asarray(rng.normal(size=(16, 16)), np.float32) for _ in range(2))


def test_products_at_default_precision_are_rounded_and_no_others():
    a, b = two_matrices()

    def both(a, b):
        exact = jnp.dot(a, b, precision="highest")
        return jnp.dot(a, b, precision="default"), exact

    call, products = rounded(both, "tpu", a, b)
    found, exact = jax.jit(call)(a, b)
    assert products == 1
    # float32 sums of 16 terms in another order
    np.testing.assert_allclose(found, bfloat16(a) @ bfloat16(b), rtol=0, atol=1e-5)
    np.testing.assert_allclose(exact, a @ b, rtol=0, atol=1e-5)
    assert np.abs(found - exact).max() > 1e-3


def test_products_of_loops_and_derivatives_are_rounded():
    a, b = two_matrices()
    ones = np.ones_like(a)

    def loss(a, b):
        return jax.lax.fori_loop(0, 1, lambda i, x: jnp.dot(x, b), a).sum()

    call, products = rounded(jax.grad(loss), "tpu", a, b)
    assert products == 2
    np.testing.assert_allclose(call(a, b), ones @ bfloat16(b).T, rtol=0, atol=1e-5)


def test_the_bfloat16_step_of_a_linear_memory_leaves_no_product_to_the_machine():
    memory = mj.zoo.get("gated_deltanet")
    inputs = kernel_errors.drawn(memory, 64, 1, 16, jnp.bfloat16)
    params = memory.init(jax.random.key(0), heads=1, key_dim=16, value_dim=16)
    with kernels_pallas.override(interpret=True):
        pull = kernel_errors.pulled(memory, "pallas_tpu")
        assert rounded(pull, "tpu", params, inputs).products == 0


def test_relative_error():
    expected = {"a": np.array([3.0, 4.0]), "b": np.zeros(2)}
    found = {"a": np.array([3.0, 4.5]), "b": np.array([0.0, 1e-3])}
    assert kernel_errors.relative(found, expected) == pytest.approx(0.1)
    assert kernel_errors.relative({**found, "b": np.array([0.0, 0.2])}, expected) == 0.2
    assert kernel_errors.relative({**found, "a": np.array([np.nan, 1.0])}, expected) == np.inf


@pytest.mark.slow
def test_errors_of_a_row():
    found = {x["form"]: x for x in kernel_errors.errors("linear_attention", 64, "bfloat16", 1, 16)}
    assert set(found) == {"stored", *kernel_errors.FORMS}
    for part in kernel_errors.PARTS:
        floor = found["stored"][part]
        assert floor < 2**-8  # half a unit of 8 bits of mantissa
        assert found["chunked"][part] < floor + 1e-6  # float32 inside
        assert floor <= found["pallas_tpu"][part] < 2**-6  # sums of products of two such
    record = {"report": kernel_tables.report(), "heads": 1, "width": 16, "machine": ""}
    page = kernel_errors.document({**record, "results": list(found.values())})
    assert "| linear_attention | 64 | gradients |" in page


def kernel_bytes(jaxpr) -> int:
    """Of the operands and results of the kernels that a program calls."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            arrays = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
            arrays = [x for x in arrays if x.size > 1]  # a Triton kernel is given a zero besides
            total += sum(x.size * x.dtype.itemsize for x in arrays)
        else:
            inner = jax.extend.core.jaxprs_in_params(eqn.params)
            total += sum(map(kernel_bytes, inner))
    return total


@pytest.mark.parametrize("backend", ["tpu", "gpu"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "op", [TINY, *(op for op in OPS if op.batch == 4 and op.width == 64)], ids=lambda op: op.row
)
def test_bytes_are_those_of_the_kernels(op, backward, backend):
    if backend == "gpu" and backward and op.group == "deep memory":
        pytest.skip("the backward pass of a large state is pure JAX on a GPU")
    passes = bench_kernels.passes(kernel_traffic.memory_of(op), f"pallas_{backend}")
    run = passes["forward and backward" if backward else "forward"]
    with kernels_pallas.override(interpret=True):
        program = jax.make_jaxpr(run)(*kernel_traffic.shapes(op))
    assert sum(kernel_traffic.traffic(op, backward, backend).values()) == kernel_bytes(
        program.jaxpr
    )


def test_bounds():
    op = next(op for op in OPS if op.row == "linear_attention" and op.width == 128)
    tokens = op.batch * op.tokens * op.heads * op.width * 2
    counted = kernel_traffic.traffic(op)
    assert counted["tokens"] == 3 * tokens
    assert counted["y"] == tokens
    on = chip_of("NVIDIA H100 80GB HBM3")
    moved = sum(counted.values()) / on.bandwidth
    products = kernel_traffic.work(op) / on.flops
    assert kernel_traffic.bound(op, on) == pytest.approx(1e3 * max(moved, products))
    assert chip_of("TPU v5 lite").name == "TPU v5e"
    assert chip_of("TPU v5p").name == "TPU v5p"
    assert chip_of("cpu") is None


def test_names_of_ops_are_distinct():
    assert len({op.name for op in (*OPS, *SMALL)}) == len(OPS) + len(SMALL)


def test_a_form_that_is_wrong_is_not_timed(monkeypatch):
    right = bench_kernels.pulled

    def wrong(memory, form):
        pull = right(memory, form)
        if form == "recurrent":
            return pull
        return lambda *args: jax.tree.map(lambda x: 1.01 * x, pull(*args))

    memory = mj.zoo.get("linear_attention")
    bench_kernels._expected.cache_clear()
    assert set(bench_kernels.check(memory, "chunked", 8, "float32")) == set(kernel_errors.PARTS)
    monkeypatch.setattr(bench_kernels, "pulled", wrong)
    with pytest.raises(bench_kernels.Refused, match=r"chunked differs from recurrent"):
        bench_kernels.check(memory, "chunked", 8, "float32")
    op = TINY._replace(row="linear_attention", width=8)
    entries = bench_kernels.time_op(op, ["chunked"], "tpu", seconds=0.0)
    assert [("ms" in x, "differs" in x["refused"]) for x in entries] == [(False, True)]


@pytest.mark.slow
def test_pages(tmp_path):
    """Both parts of the page and the plot, of a record that went through JSON."""
    memory = mj.zoo.get("linear_attention")
    cpu = bench_kernels.compare("linear_attention", memory, (1, 8), (1, 1, 8), seconds=0.0)
    taken = {("recurrent", 1), ("chunked", 8)}
    assert {(x["auto"], x["tokens"]) for x in cpu} == taken
    assert all(x["ratio"] >= 1 for x in cpu)
    op = TINY._replace(row="linear_attention", width=8)
    timed = bench_kernels.time_op(op, ["chunked"], "tpu", seconds=0.0)
    timed.append({**op._asdict(), "form": "pallas_tpu", "refused": "no TPU"})
    record = {
        "accelerators": {"TPU v5e": {"report": kernel_tables.report(), "results": timed}},
        "cpu": {"report": kernel_tables.report(), "results": cpu},
    }
    record = json.loads(json.dumps(record))
    page = kernel_tables.page(record)
    assert "| forward and backward | chunked |" in page
    assert "| pallas_tpu | no TPU |" in page
    kernel_tables.plot(record, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert "Not measured yet" in kernel_tables.page({"accelerators": {}, "cpu": {}})
