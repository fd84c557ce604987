"""The child process that compiles: reads a job, writes what the compiler says of it.

python -m miras_jax.planning.child JOB RESULT
"""

import json
import pickle
import sys
import time
from pathlib import Path


def main(job: str, result: str) -> None:
    """Compiles the job of one file and writes what came of it as JSON to another."""
    config, topology, packed, experiment = pickle.loads(Path(job).read_bytes())
    if experiment:
        from miras_jax.cli import load_experiment

        load_experiment(experiment)

    import jax

    from kernels_pallas import override
    from miras_jax.planning.compiling import read_compiled
    from miras_jax.training.program import abstract_batch, jit_step
    from miras_jax.training.state import abstract_state, mesh_of, shardings_of

    try:
        mesh = mesh_of(config.mesh, devices_of(topology))
        state = abstract_state(config, mesh)
        batch = abstract_batch(config, mesh, packed=packed)
        step = jit_step(config, shardings_of(state))
        # Kernels are chosen for the machine that is planned, not for this one.
        with jax.set_mesh(mesh), override(platform=topology.platform):
            lowered = step.lower(state, batch)
            since = time.monotonic()
            compiled = lowered.compile()
        found = read_compiled(compiled, topology.devices, time.monotonic() - since)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    Path(result).write_text(json.dumps(found))


def devices_of(topology) -> list:
    """The devices of a topology, described by its compiler; or emulated ones."""
    import jax

    if topology.platform == "cpu":
        return jax.devices()
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": topology.host_bounds}
    if topology.kind == "v4":
        options["chip_config_name"] = "megacore"  # both cores are one device, as on the machine
    name = f"{'tpu7x' if topology.kind == '7x' else topology.kind}:{topology.name.split(':')[1]}"
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


if __name__ == "__main__":
    main(*sys.argv[1:])
