"""The estimate of temporaries against what a compiler takes, and how it moves."""

import dataclasses

import jax
import pytest

from miras_jax.nn import ModelConfig
from miras_jax.planning.arrays import arrays_of
from miras_jax.planning.liveness import TOLERANCE, temporaries
from miras_jax.training import DataConfig, MeshConfig, TrainConfig
from miras_jax.training.program import abstract_batch, jit_step
from miras_jax.training.state import abstract_state, mesh_of, shardings_of


def run(memory, *, mesh, accumulation=1, remat=True):
    model = ModelConfig(memory=memory, dim=64, depth=3, heads=2, remat=remat)
    data = DataConfig(window=256, batch_size=8)
    return TrainConfig(model=model, data=data, mesh=mesh, accumulation=accumulation)


def estimate(config, platform="cpu"):
    arrays = arrays_of(config, packed=False)
    return temporaries(config, arrays, packed=False, platform=platform)


CASES = {
    "fsdp": run("linear_attention", mesh=MeshConfig(fsdp=2)),
    "microbatches": run("linear_attention", mesh=MeshConfig(fsdp=2), accumulation=2),
    "no remat": run("linear_attention", mesh=MeshConfig(fsdp=2), remat=False),
    "tensor": run("transformer", mesh=MeshConfig(fsdp=2, tensor=2)),
    "deep memory": run("yaad", mesh=MeshConfig(fsdp=2)),
}


@pytest.mark.parametrize("case", [case for case in CASES if case != "fsdp"])
def test_estimate_is_near_the_compilers(case):
    config = CASES[case]
    mesh = mesh_of(config.mesh, jax.devices()[: config.mesh.size])
    state = abstract_state(config, mesh)
    with jax.set_mesh(mesh):
        step = jit_step(config, shardings_of(state))
        compiled = step.lower(state, abstract_batch(config, mesh, packed=False)).compile()
    memory, arrays = compiled.memory_analysis(), arrays_of(config, packed=False)
    held = arrays.device_bytes + arrays.optimizer + arrays.batch
    assert memory.argument_size_in_bytes == held, "what is exact is exact"
    assert 1 / TOLERANCE < estimate(config) / memory.temp_size_in_bytes < TOLERANCE


def test_what_makes_it_smaller():
    whole, halves = (estimate(CASES[case], "gpu") for case in ("fsdp", "microbatches"))
    assert halves < 0.7 * whole, "a microbatch is half of the batch"
    assert whole < 0.7 * estimate(CASES["no remat"], "gpu")
    more = dataclasses.replace(CASES["fsdp"], mesh=MeshConfig(fsdp=8))
    assert estimate(more, "gpu") < 0.7 * whole
