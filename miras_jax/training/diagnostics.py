"""What the inner loops do, in figures a layer: for the metrics of a run and for `miras inspect`."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from miras_jax.memory import Diagnostics
from miras_jax.nn import LanguageModel
from miras_jax.nn.partition import BATCH
from miras_jax.training.config import TrainConfig

Figures = dict[str, list[float]]


def summary(diagnostics: Diagnostics) -> dict[str, jax.Array]:
    """Means over rows, tokens and heads, `[layers]` each, and the largest memory norm.

    Args:
      diagnostics: `[layers, B, T, H]`, of `LanguageModel.diagnose`.
    """
    over = (1, 2, 3)
    means = {name: jnp.mean(x, axis=over) for name, x in diagnostics._asdict().items()}
    return {**means, "max_memory_norm": jnp.max(diagnostics.memory_norm, axis=over)}


def make_diagnosis(
    config: TrainConfig, mesh: Mesh
) -> Callable[[LanguageModel, jax.Array, jax.Array | None], Figures]:
    """Returns a function from parameters, a batch's tokens int32 `[B, T + 1]` and, where rows are
    packed, its segment ids `[B, T]`, to figures for the metrics, `inner/NAME` with one number a
    layer.

    It reads the start of the batch's first row, on all shards of the batch alike: the figures do
    not depend on the mesh.
    """
    shards = mesh.shape[BATCH[0]] * mesh.shape[BATCH[1]]
    length = min(config.log.diagnostics_tokens, config.data.window)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def diagnose(params, tokens, segment_ids):
        def row(x):
            return None if x is None else jnp.repeat(x[:1, :length], shards, axis=0)

        diagnostics = params.diagnose(row(tokens), segment_ids=row(segment_ids))
        return summary(jax.tree.map(lambda x: x[:, :1], diagnostics))

    def figures(
        params: LanguageModel, tokens: jax.Array, segment_ids: jax.Array | None = None
    ) -> Figures:
        found = jax.device_get(diagnose(params, tokens, segment_ids))
        names = (*Diagnostics._fields, "max_memory_norm")  # in this order; jax sorts them
        return {f"inner/{name}": np.asarray(found[name], float).tolist() for name in names}

    return figures
