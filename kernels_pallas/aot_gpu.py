"""Compile for a GPU that is not there, and read the assembler's figures.

XLA, Triton and Mosaic GPU compile down to PTX for a described device; the assembler of the CUDA
wheels says how many registers a thread takes and what did not fit. Nothing is run.
"""

import re
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kernels_pallas.aot_hlo import border_bytes, custom_calls
from kernels_pallas.aot_tpu import compile_for, program_figures

ARCHITECTURE = "sm_90a"
CORES = 132
SHARED_BYTES = 232448
"""Shared memory that one block can have on an H200."""

H200 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: {SHARED_BYTES}
  threads_per_core_limit: 2048
  core_count: {CORES}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 151397597184
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA H200"
"""
"""The device in XLA's text format (GpuTargetConfigProto), from NVIDIA's figures."""

DEVICES = {"h200": H200}
TRITON, MOSAIC = "__gpu$xla.gpu.triton", "mosaic_gpu_v2"


class GpuKernel(NamedTuple):
    """A kernel as compiled.

    Attributes:
      name: of its `pallas_call`.
      registers: of a thread; 255 is the most there is.
      spill_store_bytes, spill_load_bytes: of a thread, written and read for want of registers, as
        often as they stand in the code.
      shared_bytes, shared_capacity: shared memory of a block, and what there is.
      threads: of a block.
      hbm_bytes: of its operands and results.
    """

    name: str
    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    shared_capacity: int
    threads: int
    hbm_bytes: int


def gpu_environment(dump: Path | str) -> dict[str, str]:
    """Variables that a process must have before jax is loaded; the compiler writes to `dump`."""
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_dump_to={dump}",
        "MOSAIC_GPU_DUMP_TO": str(dump),
    }


def compile_gpu(function: Callable, shapes: tuple, device: str, dump: Path | str) -> dict[str, Any]:
    """Compiles a function for one device and returns the figures of it as plain data.

    Args and returns are those of `kernels_pallas.aot_tpu.compile_tpu`; each kernel is a
    `GpuKernel`, `device` a key of `DEVICES`.
    """
    import jax
    from jax.experimental import topologies

    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}.")
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=DEVICES[device], topology="1x1x1"
    )
    for file in Path(dump).iterdir():
        file.unlink()
    compiled = compile_for(jax, topology.devices[0], "gpu", function, shapes, CORES)
    text = compiled.as_text()
    moved = border_bytes(text)
    entries = _entries(Path(dump))
    kernels = []
    for call in custom_calls(text, TRITON):
        name = re.search(r'\bname = "([^"]+)"', call.text).group(1)
        kernels.append(GpuKernel(name=call.kernel, hbm_bytes=moved[call.name], **entries[name]))
    for call in custom_calls(text, MOSAIC):
        entry = entries[f"{call.kernel}_mosaic_gpu_kernel"]
        kernels.append(GpuKernel(name=call.kernel, hbm_bytes=moved[call.name], **entry))
    return {"kernels": [kernel._asdict() for kernel in kernels]} | program_figures(compiled, text)


def _entries(dump: Path) -> dict[str, dict[str, int]]:
    """Figures of every entry function of the PTX files, by its name."""
    shared = _shared(dump)
    found = {}
    for file in dump.glob("*.ptx"):
        text = file.read_text()
        if ".entry" not in text:
            continue
        threads = dict(
            re.findall(r"\.entry (\w+)\(.*?\.(?:reqntid|maxntid) (\d+)", text, flags=re.DOTALL)
        )
        for name, figures in assembler_figures(_assemble(file)).items():
            static = figures.pop("static_shared_bytes")
            found[name] = figures | {
                "shared_bytes": shared.get(name, 0) + static,
                "shared_capacity": SHARED_BYTES,
                "threads": int(threads.get(name, 0)),
            }
    return found


def _assemble(ptx: Path) -> str:
    """What the assembler says about a file."""
    tool = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin", "ptxas")
    command = [tool, "-v", "-arch", ARCHITECTURE, ptx, "-o", "/dev/null"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def assembler_figures(said: str) -> dict[str, dict[str, int]]:
    """Registers, spilled bytes and static shared memory by entry function, from `ptxas -v`."""
    found = {}
    for part in said.split("Compiling entry function ")[1:]:
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        static = re.search(r"(\d+) bytes smem", part)
        found[part.split("'")[1]] = {
            "registers": int(re.search(r"Used (\d+) registers", part).group(1)),
            "spill_store_bytes": int(spills.group(1)),
            "spill_load_bytes": int(spills.group(2)),
            "static_shared_bytes": int(static.group(1)) if static else 0,
        }
    return found


def _shared(dump: Path) -> dict[str, int]:
    """Shared memory asked for at launch, by entry function."""
    found = {}
    for file in dump.glob("*.thunk_sequence.txt"):
        launches = re.findall(r"\] (\S+) grid:.*shared_memory: (\d+) bytes", file.read_text())
        found |= {name: int(size) for name, size in launches}
    for file in dump.glob("*.mlir-passes.log"):
        size = re.search(r"dynamic_shared_memory_size %c(\d+)", file.read_text())
        entry = re.sub(r"_\d+\.mlir-passes\.log$", "_mosaic_gpu_kernel", file.name)
        found[entry] = int(size.group(1)) if size else 0
    return found
