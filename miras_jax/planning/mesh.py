"""The mesh of a planned run: that of the experiment, or the one it would need on the machine."""

import dataclasses
from collections.abc import Iterator

from jax.sharding import AbstractMesh, AxisType

from miras_jax.nn.partition import AXES
from miras_jax.planning.topology import Topology
from miras_jax.training.config import MeshConfig, TrainConfig, validate
from miras_jax.training.errors import UserError


def sizes(mesh: MeshConfig) -> dict[str, int]:
    """Devices along each axis."""
    return {name: getattr(mesh, name) for name in AXES}


def piece(config: TrainConfig) -> tuple[int, int]:
    """Rows of a microbatch, and tokens of a row, that lie on one device."""
    mesh = config.mesh
    rows = config.data.batch_size // (mesh.data * mesh.fsdp * config.accumulation)
    return rows, config.data.window // mesh.sequence


def options(mesh: MeshConfig) -> str:
    """The mesh as options of `miras train`."""
    return " ".join(f"--mesh.{name} {size}" for name, size in _named(mesh))


def words(mesh: MeshConfig) -> str:
    """The mesh for people: data 1 x fsdp 8 x tensor 1."""
    return " x ".join(f"{name} {size}" for name, size in _named(mesh))


def _named(mesh: MeshConfig) -> list[tuple[str, int]]:
    """The axes with their devices; few runs have one over the sequence."""
    return [(name, size) for name, size in sizes(mesh).items() if name != "sequence" or size > 1]


def abstract_mesh(mesh: MeshConfig) -> AbstractMesh:
    """The mesh without its devices, enough to say where arrays lie."""
    shape = sizes(mesh)
    return AbstractMesh(
        tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape)
    )


def meshes(config: TrainConfig, devices: int) -> Iterator[TrainConfig]:
    """Configurations that use all devices and whose batch and heads the mesh divides.

    Devices go to fsdp, the rest of the mesh stays; where the batch has too few rows for that, heads
    are shared out over tensor 2, 4, ...
    """
    mesh = dataclasses.replace(config.mesh, devices=None)
    tensor = mesh.tensor
    while tensor <= config.model.heads:
        others = dataclasses.replace(mesh, fsdp=1, tensor=tensor).size
        if devices % others == 0:
            found = dataclasses.replace(mesh, fsdp=devices // others, tensor=tensor)
            found = dataclasses.replace(config, mesh=found)
            try:
                validate(found)
                yield found
            except UserError:
                pass
        tensor *= 2


def fit_mesh(config: TrainConfig, topology: Topology, *, chosen: bool) -> tuple[TrainConfig, str]:
    """The configuration with a mesh of all devices of the topology, and what was changed, or "".

    Args:
      config: the run.
      topology: the machine.
      chosen: whether the user named a mesh, which is not changed then.

    Raises:
      UserError: there is no such mesh, or the one chosen has another number of devices.
    """
    if config.mesh.size == topology.devices:
        return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, devices=None)), ""
    found = next(meshes(config, topology.devices), None)
    has = words(config.mesh)
    if chosen:
        hint = f"; try {options(found.mesh)}" if found else ""
        raise UserError(
            f"the mesh {has} has {config.mesh.size} device(s), {topology.name} has"
            f" {topology.devices}{hint}"
        )
    if found is None:
        raise UserError(
            f"no mesh of the {topology.devices} devices of {topology.name} divides the"
            f" {config.data.batch_size} rows of a batch (in {config.accumulation} microbatches) and"
            f" the {config.model.heads} heads: change --data.batch-size"
        )
    return found, (
        f"The experiment's mesh, {has}, has {config.mesh.size} device(s); planned, and to be given"
        f" to miras train: {options(found.mesh)}"
    )
