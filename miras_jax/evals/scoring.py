"""Log probabilities of every token of many sequences: what the evaluators are made of.

A sequence of any length is read in pieces with the state carried from one to the next, so that
memory on the device does not grow with its length (attention's does). Short sequences share a
batch with others of about their length. Of a model whose state has constant size the rows of a
batch are lanes, in which long sequences follow one another without a gap; each begins a piece, with
its memory reset. Filling stands behind a sequence's last token, where nothing reads it.
"""

import dataclasses
import functools
import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from miras_jax.evals.errors import EvaluationError
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


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model says of one sequence of n tokens, of the n - 1 after its first.

    Attributes:
      index: which sequence, by its place among those given.
      logprobs: float32 `[n - 1]`, natural logarithms.
      greedy: bool `[n - 1]`, whether the token is the likeliest one.
      norms: float32 `[layers, n - 1]`, the l2 norm of each memory after reading the token before,
        the mean over its heads; None if they were not asked for.
    """

    index: int
    logprobs: np.ndarray
    greedy: np.ndarray
    norms: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Round:
    """Lanes that are read together from a fresh state, `size` tokens a piece."""

    lanes: list[list[int]]
    size: int
    pieces: int


def score(
    model: Model,
    sequences: Sequence[np.ndarray],
    *,
    batch_size: int = 16,
    piece: int = 512,
    norms: bool = False,
) -> Iterator[Scores]:
    """Scores sequences, each from a fresh state.

    Args:
      model: the model; on a mesh, inside `jax.set_mesh`.
      sequences: ids int `[n]` each, the first of which is only read.
      batch_size: rows in a batch; rounded up to the mesh.
      piece: tokens that are read at once; rounded up to the grid of the model's chunks.
      norms: whether to take the norms of the memories too, token by token, which takes longer.

    Yields:
      the scores of every sequence, in the order in which they are done.

    Raises:
      EvaluationError: an id outside the vocabulary, a size below 1, or norms of a model that has
        no memory with an inner loop.
    """
    if min(batch_size, piece) < 1:
        raise EvaluationError(f"batch_size and piece must be at least 1: {batch_size=}, {piece=}")
    if norms and not _has_norms(model):
        raise EvaluationError("this model has no inner loop whose memory could be measured")
    lengths = [max(len(ids) - 1, 0) for ids in sequences]
    for index, length in enumerate(lengths):
        if not length:
            yield Scores(index, np.zeros(0, np.float32), np.zeros(0, bool))
    if not any(lengths):
        return
    # An id too large would read another token's row, and nobody would know.
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if size and (worst := max(int(np.max(ids)) for ids in sequences if len(ids))) >= size:
        raise EvaluationError(f"token {worst} is outside the model's vocabulary of {size}")
    device = _Device(model, norms)
    rows = device.rows(min(batch_size, len(sequences)))
    piece = -(-piece // (grid := grid_of(model))) * grid
    for each in plan(lengths, rows, piece, packs=not grows(model)):
        yield from _read_round(device, each, sequences, lengths, rows)


def plan(lengths: Sequence[int], rows: int, piece: int, *, packs: bool) -> list[Round]:
    """Shares out the sequences, the longest first, so that want of memory shows at once.

    Args:
      lengths: tokens that are read of each sequence; of length 0 none is read.
      rows: lanes of a round.
      piece: tokens a piece; sequences that are longer take several.
      packs: whether a lane may hold several long sequences.
    """
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i])
    cut = next((k for k, i in enumerate(order) if lengths[i] <= piece), len(order))
    long, short, made = order[:cut], order[cut:], []
    if packs and long:
        lanes: list[list[int]] = [[] for _ in range(min(rows, len(long)))]
        loads = [(0, lane) for lane in range(len(lanes))]
        for i in long:  # to the lane that has least to read
            load, lane = heapq.heappop(loads)
            lanes[lane].append(i)
            heapq.heappush(loads, (load + -(-lengths[i] // piece), lane))
        made.append(Round(lanes, piece, max(load for load, _ in loads)))
    else:
        for group in _groups(long, rows):
            made.append(Round([[i] for i in group], piece, -(-lengths[group[0]] // piece)))
    for group in _groups(short, rows):
        size = SMALLEST
        while size < lengths[group[0]]:
            size *= 2
        made.append(Round([[i] for i in group], min(size, piece), 1))
    return made


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


def _groups(items: list[int], size: int) -> Iterator[list[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _read_round(
    device: "_Device",
    this: Round,
    sequences: Sequence[np.ndarray],
    lengths: Sequence[int],
    rows: int,
) -> Iterator[Scores]:
    """Reads the lanes piece by piece; fetches a piece while the device works on the next one."""
    size = this.size
    packed = any(len(lane) > 1 for lane in this.lanes)
    # (sequence, where the piece begins in it, number of the sequence in its lane)
    queues = [
        [(i, at, k) for k, i in enumerate(lane) for at in range(0, lengths[i], size)]
        for lane in this.lanes
    ]
    state, carried, waiting = None, this.pieces > 1, None
    if carried:
        capacity = size
        while capacity < size * this.pieces:  # few different ones: each is compiled
            capacity *= 2
        state = device.start(rows, capacity)
    partial: dict[int, list[list[np.ndarray]]] = {}

    def collect(work, results):
        for row, entry in work:
            i, at, _ = entry
            taken = min(size, lengths[i] - at)
            partial.setdefault(i, []).append([x[..., row, :taken] for x in results])
            if at + taken == lengths[i]:
                logprobs, greedy, *norms = (
                    np.concatenate(x, axis=-1) for x in zip(*partial.pop(i), strict=True)
                )
                yield Scores(i, logprobs, greedy, norms[0] if norms else None)

    for step in range(this.pieces):
        tokens = np.zeros((2, rows, size), np.int32)  # inputs and targets
        segments = np.zeros((rows, size), np.int32)
        work = []
        for row, queue in enumerate(queues):
            if step >= len(queue):
                segments[row] = queue[-1][2]
                continue
            i, at, segments[row] = queue[step]
            ids = np.asarray(sequences[i][at : at + size + 1])
            tokens[0, row, : len(ids[:size])] = ids[:size]
            tokens[1, row, : len(ids) - 1] = ids[1:]
            work.append((row, queue[step]))
        results, state = device.read(*tokens, state, segments if packed else None, carried)
        if waiting:
            yield from collect(*jax.device_get(waiting))
        waiting = (work, results)
    yield from collect(*jax.device_get(waiting))


class _Device:
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
        return _compiled_start(rows, capacity, self.model)

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


def _has_norms(model: Model) -> bool:
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
