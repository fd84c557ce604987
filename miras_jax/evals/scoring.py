"""Log probabilities of every token of many sequences: what the evaluators are made of.

A sequence of any length is read in pieces with the state carried from one to the next, so that
memory on the device does not grow with its length (attention's does). Short sequences share a
batch with others of about their length. Of a model whose state has constant size the rows of a
batch are lanes, in which long sequences follow one another without a gap; each begins a piece, with
its memory reset. When half of the lanes have ended, the others go on in a smaller batch. Filling
stands behind a sequence's last token, where nothing reads it.
"""

import dataclasses
import heapq
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from miras_jax.evals.device import SMALLEST, Device, Model, grid_of, grows, has_norms
from miras_jax.evals.errors import EvaluationError


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
    if norms and not has_norms(model):
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
    device = Device(model, norms)
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


def _groups(items: list[int], size: int) -> Iterator[list[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _read_round(
    device: "Device",
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
        rows = device.rows(len(queues))
        capacity = size
        while capacity < size * this.pieces:  # few different ones: each is compiled
            capacity *= 2
        state = device.start(rows, capacity)
    queues += [[]] * (rows - len(queues))
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
        going = [row for row, queue in enumerate(queues) if step < len(queue)]
        if (fewer := device.rows(len(going))) <= rows // 2 and carried:
            rows = fewer
            kept = [*going, *(row for row in range(len(queues)) if row not in going)][:rows]
            queues = [queues[row] for row in kept]
            state = device.keep(state, kept)
        tokens = np.zeros((2, rows, size), np.int32)  # inputs and targets
        segments = np.zeros((rows, size), np.int32)
        work = []
        for row, queue in enumerate(queues):
            if step >= len(queue):
                segments[row] = queue[-1][2] if queue else 0
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
