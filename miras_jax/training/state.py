"""The state of a run as one pytree, and where each of its arrays lives on the mesh."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from miras_jax.nn import LanguageModel, partition
from miras_jax.training.config import MeshConfig, TrainConfig
from miras_jax.training.errors import UserError
from miras_jax.training.optimizer import make_optimizer
from miras_jax.training.trainable import make_model, split


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that a step changes.

    Attributes:
      step: int32 [], the number of updates done.
      params: the model itself, whose leaves are float32 parameters.
      opt: the state of the optimizer, of the parameters that are trained.
    """

    step: jax.Array
    params: LanguageModel
    opt: optax.OptState


def make_mesh(config: MeshConfig) -> Mesh:
    """Builds the mesh of axes data, fsdp, sequence and tensor from the first devices there are.

    Raises:
      UserError: if the mesh does not divide the devices, or CPU devices can no longer be emulated.
    """
    if config.devices is not None:
        try:
            jax.config.update(
                "jax_num_cpu_devices", config.devices
            )  # no effect where there is an accelerator
        except RuntimeError:
            if jax.local_device_count("cpu") < config.devices:
                raise UserError(
                    f"mesh.devices {config.devices} cannot be emulated: jax already runs in this"
                    f" process with {jax.local_device_count('cpu')} CPU devices"
                ) from None
    devices, processes = jax.devices(), jax.process_count()
    shape = tuple(getattr(config, axis) for axis in partition.AXES)
    mesh = f"mesh {' x '.join(partition.AXES)} = {' x '.join(map(str, shape))} = {config.size}"
    if processes > 1 and config.size != len(devices):
        raise UserError(f"{mesh} must be all {len(devices)} devices of the {processes} processes")
    if len(devices) % config.size:
        backend = jax.default_backend()
        hint = (
            f"--mesh.devices {config.size} emulates them"
            if backend == "cpu"
            else "try --mesh.fsdp 1 --mesh.tensor 1, or JAX_PLATFORMS=cpu to emulate"
        )
        raise UserError(
            f"{mesh} devices does not divide the {len(devices)} {backend} device(s) here; {hint}"
        )
    return mesh_of(config, devices[: config.size])


def mesh_of(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """Lays the mesh over given devices, which may be those of a topology that is not here."""
    shape = tuple(getattr(config, axis) for axis in partition.AXES)
    # A torus of 16 x 16 may have to be cut along one of its axes: fsdp 128 x tensor 2.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, partition.AXES, axis_types=(AxisType.Auto,) * len(shape))


def create_state(config: TrainConfig, key: jax.Array) -> State:
    """Makes the state before the first update from a PRNG key."""
    params = make_model(config.model, config.trainable.lora, key)
    trained, _ = split(params, config.trainable)
    return State(
        step=jnp.zeros((), jnp.int32), params=params, opt=make_optimizer(config).init(trained)
    )


def abstract_state(config: TrainConfig, mesh: Mesh) -> State:
    """Describes the state without making it: shapes, dtypes and shardings.

    Init, restore and lowering all use it. A moment of the optimizer lies where its parameter lies:
    its path ends with the parameter's path. What belongs to no parameter must be a scalar and is
    replicated.

    Raises:
      ValueError: if an array of the optimizer belongs to no parameter.
    """
    shapes = jax.eval_shape(lambda key: create_state(config, key), jax.random.key(0))
    specs = {
        path: partition.spec_of(jax.tree_util.keystr(path), x.shape, mesh)
        for path, x in jax.tree_util.tree_leaves_with_path(shapes.params)
    }

    def place(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        suffixes = (path[i:] for i in range(len(path)))
        spec = next((specs[suffix] for suffix in suffixes if suffix in specs), None)
        if spec is None and x.ndim:
            raise ValueError(
                f"{jax.tree_util.keystr(path)} {x.shape} follows no parameter: where does it live?"
            )
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec or PartitionSpec())
        )

    return jax.tree_util.tree_map_with_path(place, shapes)


def shardings_of(abstract: State) -> State:
    """Returns the sharding of every array of an abstract state, in the same tree."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def init_state(config: TrainConfig, abstract: State) -> State:
    """Makes the initial state, every array born where `abstract` says.

    The same seed gives the same values on any mesh.
    """
    create = jax.jit(lambda key: create_state(config, key), out_shardings=shardings_of(abstract))
    return create(jax.random.key(config.seed))
