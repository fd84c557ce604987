"""What the compilers wrote is read right: samples of their words."""

import queue

import jax
import pytest

import miras_jax as mj
from kernels_pallas import aot
from kernels_pallas.aot_gpu import assembler_figures
from kernels_pallas.aot_hlo import array_bytes, border_bytes, custom_calls, operations
from kernels_pallas.aot_tpu import loop_bundles, unit_use
from kernels_pallas.cases import ALIKE, CASES, Case, find
from kernels_pallas.linear import linear_step
from tests.kernels.proofs import BUILDER

PROGRAM = """HloModule jit_f

%helper (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}

ENTRY %main (a: bf16[4,100,64], b: f32[512]) -> f32[4,100,64] {
  %a = bf16[4,100,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[512]{0:T(512)} parameter(1)
  %copy-start = (f32[512]{0:T(512)S(1)}, f32[512]{0:T(512)}, u32[]{:S(2)}) copy-start(%b)
  %copy-done = f32[512]{0:T(512)S(1)} copy-done(%copy-start)
  %slice = f32[128]{0:T(128)} slice(%b), slice={[0:128]}
  %gla_forward.1 = (f32[4,100,64]{2,1,0:T(8,128)}, /*index=1*/f32[4]{0}) \
custom-call(%a, %copy-done), \
custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/jvp(gla_forward)/pallas_call"}
  ROOT %y = f32[4,100,64]{2,1,0:T(8,128)} get-tuple-element(%gla_forward.1), index=0
}
"""

BUNDLES = """= control target key start
LB: loop body
= control target key end

     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 }
   0x2   : > { %v3 = vld [vmem:[%s2] sm:$0xff] }
   0x3 LB: >> { %4 = vmatmul.f32 %v3 }
   0x4   :  { %5 = shalt }
"""

UNITS = """== CAPACTIY:
MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU
    4     3     4     2     1     3     3     1     1     2
== UTILIZATION:
0 0 2 0 0 0 0 0 0 1
1 0 3 0 0 0 1 0 0 0
"""

ASSEMBLER = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'gla_forward' for 'sm_90a'
ptxas info    : Function properties for gla_forward
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8 bytes smem
ptxas info    : Compiling entry function 'other' for 'sm_90a'
ptxas info    : Function properties for other
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
"""


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[4,100,64]{2,1,0}", 4 * 100 * 64 * 4),
        ("bf16[4,100,64]{2,1,0:T(8,128)(2,1)}", 4 * 104 * 128 * 2),
        ("bf16[4,100,64]{1,2,0:T(8,128)(2,1)}", 4 * 128 * 64 * 2),  # the tokens along the lanes
        ("f32[512]{0:T(512)S(1)}", 0),  # in VMEM
        ("(f32[8]{0}, s32[]{:T(128)}, token[])", 8 * 4 + 4),
    ],
)
def test_bytes_of_arrays(shape, expected):
    assert array_bytes(shape) == expected


def test_bytes_moved_and_operations():
    y = 4 * 104 * 128 * 4 + 4 * 4
    assert border_bytes(PROGRAM) == {
        "copy-done": 512 * 4,  # read once, written to VMEM
        "slice": 2 * 128 * 4,
        "gla_forward.1": 4 * 104 * 128 * 2 + y,
    }
    assert operations(PROGRAM) == {"copy": 1, "slice": 1, "custom-call": 1}


def test_kernel_has_the_name_that_pallas_was_given():
    [call] = custom_calls(PROGRAM, "tpu_custom_call")
    assert (call.name, call.kernel) == ("gla_forward.1", "gla_forward")


def test_bundles_by_depth_of_loops():
    assert loop_bundles(BUNDLES) == (2, 2, 1)


def test_use_of_units():
    use = unit_use(UNITS)
    assert (use["MXU"], use["VALU"], use["VFILL"], use["SALU"]) == (1, 5, 1, 1)


def test_assembler():
    figures = assembler_figures(ASSEMBLER)
    assert figures["gla_forward"] == {
        "registers": 255,
        "spill_store_bytes": 12,
        "spill_load_bytes": 20,
        "static_shared_bytes": 8,
    }
    assert figures["other"]["registers"] == 40


def test_names_of_cases_find_them():
    assert all(
        find(case.name)._replace(chips=(), every_time=True)
        == case._replace(chips=(), every_time=True)
        for case in CASES
    )


@pytest.mark.parametrize(
    ("row", "like"), [("lightning_attention", "retnet"), ("mamba2", "retnet"), ("hgrn2", "gla")]
)
def test_rows_that_are_not_compiled_every_time_have_the_kernels_of_others(row, like):
    assert row in ALIKE
    arguments = aot.load(BUILDER.replace(":build", ":arguments"))
    cases = [Case(name, "backward", "tpu", ()) for name in (row, like)]
    one, other = (arguments(case) for case in cases)
    assert jax.tree.map(str, one) == jax.tree.map(str, other)
    one, other = (linear_step(mj.zoo.get(name), "bfloat16") for name in (row, like))
    assert one == other


def test_missing_compiler_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(aot.PACKAGES, "tpu", "no_such_package.at_all")
    with pytest.raises(ModuleNotFoundError, match=r"\[tpu\]"):
        aot.prove([], builder="", backend="tpu")


def test_crash_is_laid_to_its_job_and_the_rest_goes_on(monkeypatch, tmp_path):
    builder = tmp_path / "builder.py"
    builder.write_text(
        "import os, signal\n"
        "def build(case):\n"
        "    if case == 'crash': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    raise ValueError(f'{case} has no kernel')\n"
    )
    monkeypatch.setattr(aot, "available", lambda backend: "")
    jobs = ["first@v5e", "crash@v5e", "last@v5e"]
    results = aot.prove(jobs, builder=f"{builder}:build", backend="tpu")
    assert [results[job].figures for job in jobs] == [None] * 3
    assert "SIGKILL" in results["crash@v5e"].error
    assert results["last@v5e"].error.startswith("ValueError: last has no kernel")


def test_child_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr(aot, "available", lambda backend: "")
    with pytest.raises(RuntimeError, match="no_such_file"):
        aot.prove(["a@v5e"], builder="no_such_file.py:build", backend="tpu")


def test_silent_child_times_out():
    with pytest.raises(TimeoutError):
        list(aot._lines(queue.Queue(), 0.01))
