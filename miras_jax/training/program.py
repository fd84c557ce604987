"""The program of one step, for `miras train` to run and for `miras plan` to compile."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from miras_jax.nn.partition import BATCH
from miras_jax.training.config import TrainConfig
from miras_jax.training.optimizer import learning_rate, make_optimizer
from miras_jax.training.state import State
from miras_jax.training.step import Batch, train_step


def jit_step(config: TrainConfig, shardings: State) -> Callable:
    """Returns the jitted `train_step` of a run, from state and batch to state and metrics.

    The state is donated and comes back where `shardings` says.
    """
    step = functools.partial(
        train_step,
        optimizer=make_optimizer(config),
        schedule=learning_rate(config),
        accumulation=config.accumulation,
        shardings=shardings.params,
        skip_nonfinite=config.on_nonfinite == "skip",
        trainable=config.trainable,
    )
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def abstract_batch(config: TrainConfig, mesh: Mesh, *, packed: bool) -> Batch:
    """Describes a batch without reading any text; `packed` rows hold several documents."""
    rows, window = config.data.batch_size, config.data.window
    shapes = {"tokens": (rows, window + 1)}
    if packed:
        shapes["segment_ids"] = (rows, window)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
        for name, shape in shapes.items()
    }
