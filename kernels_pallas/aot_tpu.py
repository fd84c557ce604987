"""Compile for a TPU that is not there, and read the compiler's figures.

The real compiler (the libtpu wheel) checks layouts, types and the size of VMEM, and writes down its
static schedule. Nothing is run: a schedule's length ranks variants, it is not a time.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kernels_pallas.aot_hlo import border_bytes, custom_calls, operations

TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
"""What the compiler calls the smallest host of each chip."""

UNITS = ("MXU", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "VFILL", "VSTORE", "VSPILL", "SALU")
"""Columns of the compiler's table of use; fills and spills are registers that did not fit."""


class TpuKernel(NamedTuple):
    """A kernel as compiled.

    Attributes:
      name: of its `pallas_call`.
      vmem_bytes: that it holds at once: blocks with their second buffers, scratch, spilled values.
      vmem_spill_bytes: of those, what the compiler added for spilled values.
      vmem_capacity: of the core.
      bundles: instruction words by the depth of loops they are in: outside, in the loop over the
        grid, in loops of the kernel's own. Each is counted once, however often its loop turns.
      units: slots used by each of `UNITS`, over all bundles, each counted once.
      hbm_bytes: of its operands and results, padded as they lie in HBM.
    """

    name: str
    vmem_bytes: int
    vmem_spill_bytes: int
    vmem_capacity: int
    bundles: tuple[int, ...]
    units: Mapping[str, int]
    hbm_bytes: int


def tpu_environment(dump: Path | str) -> dict[str, str]:
    """Variables that a process must have before libtpu is loaded; the compiler writes to `dump`.

    Only the last pass is written, so that the files cost no time. Processes may share libtpu.
    """
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_LOG_DIR": "disabled",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_hlo_text=false --xla_jf_dump_llo_pass_label_regex=.*final_(bundles|hlo).*",
    }


def compile_tpu(function: Callable, shapes: tuple, chip: str, dump: Path | str) -> dict[str, Any]:
    """Compiles a function for one core of a chip and returns the figures of it as plain data.

    Args:
      function: of arrays; one that is jitted already keeps its donated arguments.
      shapes: its arguments, pytrees with `jax.ShapeDtypeStruct` or arrays as leaves.
      chip: a key of `TOPOLOGIES`.
      dump: the folder named to `tpu_environment`, emptied here.

    Returns:
      "kernels", each a `TpuKernel` as a dictionary; "argument_bytes", "output_bytes",
      "alias_bytes", "temp_bytes" in HBM; "moved_bytes" and "operations" of the whole program.
    """
    import jax
    from jax.experimental import topologies

    if chip not in TOPOLOGIES:
        raise ValueError(f"chip must be one of {', '.join(TOPOLOGIES)}, got {chip!r}.")
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    for file in Path(dump).iterdir():
        file.unlink()
    compiled = compile_for(jax, topology.devices[0], "tpu", function, shapes)
    text = compiled.as_text()
    calls = custom_calls(text, "tpu_custom_call")
    moved = border_bytes(text)
    kernels = [_kernel(call, Path(dump), moved[call.name])._asdict() for call in calls]
    return {"kernels": kernels} | program_figures(compiled, text)


def compile_for(jax, device, platform: str, function: Callable, shapes: tuple, cores: int = 0):
    """The function compiled for a device of a topology, which kernels may ask about while they
    are lowered."""
    kind = jax.sharding.AbstractDevice(
        device_kind=device.device_kind,
        num_cores=cores or device.num_cores,
        platform=platform,
    )
    here = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tuple(shapes)
    )
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=kind)):
        return jitted.lower(*shapes).compile()


def program_figures(compiled, text: str) -> dict[str, Any]:
    """Main memory and operations of a compiled program."""
    memory = compiled.memory_analysis()
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "moved_bytes": sum(border_bytes(text).values()),
        "operations": operations(text),
    }


def _kernel(call, dump: Path, moved: int) -> TpuKernel:
    def dumped(what: str) -> str:
        [file] = dump.glob(f"*-{call.name}-*{what}")
        return file.read_text()

    capacity, blocks = _vmem(dump, call.name)
    return TpuKernel(
        name=call.kernel,
        vmem_bytes=sum(blocks.values()),
        vmem_spill_bytes=blocks.get("SPILL", 0),
        vmem_capacity=capacity,
        bundles=loop_bundles(dumped("[0-9]-final_bundles.txt")),
        units=unit_use(dumped("-final_hlo-static-per-bundle-utilization.txt")),
        hbm_bytes=moved,
    )


def _vmem(dump: Path, name: str) -> tuple[int, dict[str, int]]:
    """VMEM of the core, and what an operation takes of it by kind, from the compiler's report."""
    [file] = dump.glob("*-vmem_report.html")
    text = file.read_text()
    data = text[text.index("const DATA =") + len("const DATA =") :].lstrip()
    report, _ = json.JSONDecoder().raw_decode(data)
    blocks: dict[str, int] = {}
    for block in report["hlo_breakdowns"].get(name, {"blocks": []})["blocks"]:
        kind = block["block_type"]
        blocks[kind] = blocks.get(kind, 0) + block["block_size"]
    return report["global_info"]["vmem_capacity"], blocks


def loop_bundles(text: str) -> tuple[int, ...]:
    """Instruction words by depth of loops, from the final code: `0x1c LB: >> { ...`."""
    depths = [
        len(found.group(1))
        for line in text.splitlines()
        if (found := re.match(r"\s*(?:0x)?[0-9a-f]+\s+(?:[A-Z]{2})?\s*: (>*) ?\{", line))
    ]
    return tuple(depths.count(d) for d in range(max(depths, default=0) + 1))


def unit_use(text: str) -> dict[str, int]:
    """Slots used by each unit, from the table with a row of counts per bundle."""
    rows = [line.split() for line in text.split("UTILIZATION:")[-1].splitlines() if line.strip()]
    return {unit: sum(int(row[i]) for row in rows) for i, unit in enumerate(UNITS)}
