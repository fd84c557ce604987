"""Compiles the step of a run for a machine that is not here, in a child process.

The child does what `miras train` does up to the first step, but on the devices of a topology. A
compiler that crashes takes the child with it, and no more.
"""

import dataclasses
import importlib.util
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kernels_pallas.aot_tpu import tpu_environment
from miras_jax.planning.collectives import Collective, read_program
from miras_jax.planning.topology import Topology
from miras_jax.training.config import TrainConfig
from miras_jax.training.errors import UserError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step; bytes are of one device.

    Attributes:
      refused: the program did not fit; then only `needed` and `available` are known.
      needed: bytes that it takes.
      available: bytes that the compiler had, if it said so.
      arguments: of the state and the batch, as they lie in memory.
      temporaries: of everything else but the code.
      code: of the program.
      kernels: calls of kernels of this library in the program's text.
      collectives: see `read_program`.
      unknown_loops: see `read_program`.
      seconds: that the compilation took.
    """

    refused: bool
    needed: float
    available: float | None = None
    arguments: int = 0
    temporaries: int = 0
    code: int = 0
    kernels: int = 0
    collectives: tuple[Collective, ...] = ()
    unknown_loops: int = 0
    seconds: float = 0.0


def check_compiler(topology: Topology) -> None:
    """Raises a UserError where the compiler of a TPU is not installed."""
    if topology.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology {topology.name} needs the TPU's compiler, which is not installed:"
            " pip install 'miras_jax[tpu]'"
        )


def compile_step(
    config: TrainConfig, topology: Topology, *, packed: bool, experiment: str | None, timeout: float
) -> Compiled:
    """Compiles the step of a run.

    Args:
      config: its mesh has as many devices as the topology.
      topology: a TPU, or emulated devices.
      packed: whether rows hold several documents.
      experiment: file to run first, where it registers the model.
      timeout: seconds that it may take.

    Raises:
      UserError: the compiler is not installed, crashed, took too long or refused the program for
        another reason than its size.
    """
    check_compiler(topology)
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder, "job"), Path(folder, "result")
        job.write_bytes(pickle.dumps((config, topology, packed, experiment)))
        command = [sys.executable, "-m", "miras_jax.planning.child", str(job), str(result)]
        with open(Path(folder, "errors"), "w+") as errors:
            since = time.monotonic()
            child = subprocess.Popen(
                command, env=_environment(topology), stdout=errors, stderr=errors
            )
            try:
                code = child.wait(timeout)
            except subprocess.TimeoutExpired:
                raise UserError(
                    f"the compiler for {topology.name} did not end in {timeout:.0f} s; give it"
                    " more with --timeout"
                ) from None
            finally:
                child.kill()
                child.wait()
            errors.seek(0)
            said = errors.read().splitlines()
        if code or not result.exists():
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            last = next((line for line in reversed(said) if line.strip()), "nothing was said")
            raise UserError(f"the compiler for {topology.name} ended with {how}: {last.strip()}")
        found = json.loads(result.read_text())
    if "error" in found:
        if (size := _too_large(found["error"])) is None:
            what = " ".join(found["error"].split())
            raise UserError(f"the step does not compile for {topology.name}: {what[:600]}")
        return Compiled(True, *size, seconds=time.monotonic() - since)
    rows = tuple(Collective(*row) for row in found.pop("collectives"))
    return Compiled(refused=False, collectives=rows, **found)


def read_compiled(compiled, devices: int, seconds: float) -> dict:
    """What the child tells of a compiled step, as plain data."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    program = read_program(text, devices)
    code = memory.generated_code_size_in_bytes
    # What is donated is given back as the output; the rest of it is the metrics.
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + made
    return {
        "needed": memory.argument_size_in_bytes + temporaries + code,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": temporaries,
        "code": code,
        "kernels": len(re.findall('custom_call_target="tpu_custom_call"', text)),
        "collectives": program.collectives,
        "unknown_loops": program.unknown_loops,
        "seconds": seconds,
    }


def _environment(topology: Topology) -> dict[str, str]:
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    if topology.platform == "tpu":
        with tempfile.TemporaryDirectory() as nowhere:
            wanted = tpu_environment(nowhere)
        wanted["LIBTPU_INIT_ARGS"] = os.environ.get("LIBTPU_INIT_ARGS", "")
        return environment | wanted
    # jax takes the number of emulated devices from one place only.
    flags = environment.get("XLA_FLAGS", "").split()
    flags = [flag for flag in flags if "host_platform_device_count" not in flag]
    wanted = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(topology.devices)}
    return environment | wanted | {"XLA_FLAGS": " ".join(flags)}


def _too_large(error: str) -> tuple[float, float] | None:
    """Bytes needed and available, if that is what the compiler complains of."""
    size = r"([\d.]+)([KMGT]?)"
    for pattern in (
        rf"Used {size}i?B? of {size}i?B? hbm",
        rf"memory required .*?\({size}i?B?\) exceeds available HBM \({size}i?B?\)",
    ):
        if found := re.search(pattern, error):
            needed, unit, available, other = found.groups()
            return float(needed) * UNITS[unit], float(available) * UNITS[other]
    return None
