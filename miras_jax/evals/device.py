"""A model on its device or mesh: what is compiled to score batches of tokens with it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from miras_jax.memory import Memory
from miras_jax.nn.partition import BATCH

SMALLEST = 16
"""Tokens of the shortest piece; those of short sequences are this, doubled until they fit."""


class Model(Protocol):
    """What an evaluator asks of a model; `LanguageModel` is one.

    It need not be a pytree: an object that jax takes for a leaf is compiled in as a constant.
    """

    def init_state(self, batch: int, capacity: int | None = None) -> Any:
        """The state of `batch` rows before the first of `capacity` tokens."""
        ...

    def __call__(
        self, tokens: jax.Array, state: Any = None, segment_ids: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Logits `[B, T, vocab]` of the next tokens, and the state after them."""
        ...


def grid_of(model: Model) -> int:
    """Tokens after which the model's chunks and segments stand as at the beginning."""
    config = getattr(model, "config", None)
    if config is None:
        return 1
    grid = getattr(config.build_memory(), "chunk_size", 1)
    return int(np.lcm(grid, config.segment_size)) if config.block == "mac" else grid


def grows(model: Model) -> bool:
    """Whether the state's size depends on the tokens that it has to hold, as attention's does."""
    small, large = (
        jax.tree.leaves(jax.eval_shape(functools.partial(_start, 1, capacity), _as_tree(model)))
        for capacity in (SMALLEST, 2 * SMALLEST)
    )
    return [x.shape for x in small] != [x.shape for x in large]


class Device:
    """The model on its device or mesh, with compiled functions that all calls share."""

    def __init__(self, model: Model, norms: bool):
        self.model, self.norms = _as_tree(model), norms
        mesh = jax.sharding.get_mesh()
        self.sharding = None if mesh.empty else NamedSharding(mesh, PartitionSpec(BATCH))
        self.shards = 1 if mesh.empty else mesh.shape[BATCH[0]] * mesh.shape[BATCH[1]]

    def rows(self, wanted: int) -> int:
        """Rows of a batch that the mesh can share out."""
        return -(-wanted // self.shards) * self.shards

    def start(self, rows: int, capacity: int) -> Any:
        """The state before the first token."""
        return _compiled_start(rows, capacity, self.model)

    def keep(self, state: Any, rows: list[int]) -> Any:
        """The state of some rows alone."""
        return _rows_of(state, np.array(rows), self.axes)

    @functools.cached_property
    def axes(self) -> tuple[int | None, ...]:
        """The axis of the rows in each leaf of the state, None of a leaf that all rows share."""
        one, two = (
            jax.tree.leaves(jax.eval_shape(functools.partial(_start, rows, SMALLEST), self.model))
            for rows in (1, 2)
        )
        differ = [
            np.flatnonzero(np.not_equal(x.shape, y.shape)) for x, y in zip(one, two, strict=True)
        ]
        return tuple(int(axes[0]) if axes.size else None for axes in differ)

    def read(self, tokens, targets, state, segments, carried):
        """Starts to read a piece: arrays of the results, and the state if it is carried on."""
        place = functools.partial(jax.device_put, device=self.sharding)
        arrays = (place(tokens), place(targets), None if segments is None else place(segments))
        norms = [_norms(self.model, arrays[0], state, arrays[2])] if self.norms else []
        read = _read_on if carried else _read_once
        (logprobs, greedy), state = read(self.model, *arrays, state)
        return (logprobs, greedy, *norms), state


def _start(batch: int, capacity: int, model: Model) -> Any:
    return model.init_state(batch, capacity=capacity)


_compiled_start = jax.jit(_start, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=2)
def _rows_of(state, rows, axes):
    leaves, structure = jax.tree.flatten(state)
    taken = [
        x if axis is None else jnp.take(x, rows, axis=axis)
        for x, axis in zip(leaves, axes, strict=True)
    ]
    return jax.tree.unflatten(structure, taken)


def _read(model, tokens, targets, segments, state):
    logits, state = model(tokens, state, segments)
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    logprobs = chosen - jax.nn.logsumexp(logits, axis=-1)
    return _whole((logprobs, jnp.argmax(logits, axis=-1) == targets)), state


@functools.partial(jax.jit, donate_argnums=4)
def _read_on(model, tokens, targets, segments, state):
    return _read(model, tokens, targets, segments, state)


@jax.jit
def _read_once(model, tokens, targets, segments, state):
    return _read(model, tokens, targets, segments, state)[0], None


@jax.jit
def _norms(model, tokens, state, segments):
    return _whole(jnp.mean(model.diagnose(tokens, state, segments).memory_norm, axis=-1))


def _whole(tree):
    """Every process of a mesh can read the results."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def has_norms(model: Model) -> bool:
    """Whether the model can say how large its memories are."""
    config = getattr(model, "config", None)
    return hasattr(model, "diagnose") and (
        config is None or isinstance(config.build_memory(), Memory)
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Constant:
    """A model that is no pytree, as one without leaves."""

    model: Any = dataclasses.field(metadata={"static": True})

    def init_state(self, batch: int, capacity: int | None = None) -> Any:
        return self.model.init_state(batch, capacity=capacity)

    def __call__(self, tokens, state=None, segment_ids=None):
        return self.model(tokens, state, segment_ids)

    @property
    def diagnose(self) -> Callable:
        return self.model.diagnose


def _as_tree(model: Model) -> Model:
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(model))
    return _Constant(model) if is_leaf else model
