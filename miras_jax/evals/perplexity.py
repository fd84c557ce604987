"""Perplexity and bits per byte of documents, in rolling windows or with the memory carried.

Carried: a document is read from its first token to its last with one memory, in pieces, however
long it is; a memory of constant size is made for this. Rolling: each window is read from a fresh
memory, as a model of limited length has to, and only its last tokens are scored, so that every
token is scored once with some context before it; lm-evaluation-harness does the same.

A document's first token is predicted from the separator, which itself is not scored.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from miras_jax.evals.device import Model
from miras_jax.evals.errors import EvaluationError
from miras_jax.evals.result import Result, exponential, known, ratio_error
from miras_jax.evals.scoring import score
from miras_jax.evals.suite import Common, Evaluator, Subject
from miras_jax.evals.texts import Document, read_documents

FIRST_EDGE = 64
"""Tokens of the first bucket of positions, where the buckets double."""


@dataclasses.dataclass(frozen=True)
class Options(Common):
    """Options of `perplexity:PATH`."""

    mode: Literal["carried", "rolling"] = "carried"
    """carried reads whole documents with one memory; rolling reads windows afresh."""
    window: int = 1024
    """rolling: tokens that are read at once."""
    context: int | None = None
    """rolling: tokens of a window, at least 1, that the first scored token has before it; 1 if
    neither this nor the stride is given."""
    stride: int | None = None
    """rolling: tokens scored in each window but the first, window - context + 1."""
    format: str = "auto"
    """Of the files: auto, text, jsonl, parquet, array_record, wikitext."""
    field: str = "text"
    """Name of the text in JSON objects, columns and records."""
    length: int | None = None
    """Cuts documents into stretches of so many tokens, each with a memory of its own."""
    every: int | None = None
    """Reads only the first of so many documents or stretches, and so on, from the whole text."""
    positions: bool = False
    """Adds the curve of bits per byte by position in the document."""
    bucket: int | None = None
    """Tokens a bucket of positions; doubling from 64 if not given."""
    memory: bool = False
    """Adds the norm of the memories by position; reads token by token. carried only."""


def prepare(target: str, options: Options, subject: Subject) -> list[Evaluator]:
    """Reads the text of `perplexity:TARGET`."""
    rolling = options.mode == "rolling"
    stride = _stride(options) if rolling else None
    edges = None
    documents = read_documents(
        target,
        subject.vocabulary,
        format_=options.format,
        field=options.field,
        limit=options.limit,
        length=options.length,
        every=options.every,
    )
    if options.positions or options.memory or options.bucket is not None:
        edges = bucket_edges(max(len(d.ids) for d in documents), options.bucket)

    def run(model: Model) -> Result:
        return perplexity(
            model,
            documents,
            separator=subject.vocabulary.tokenizer.separator,
            window=options.window if rolling else None,
            stride=stride,
            edges=edges,
            norms=options.memory,
            batch_size=options.batch_size or subject.batch_size,
            piece=options.piece or subject.piece,
        )

    return [Evaluator(options.name or subject.name_of(target), run)]


def _stride(options: Options) -> int:
    """Checks the options of rolling windows."""
    if options.memory:
        raise EvaluationError("memory is of mode=carried: windows have memories of their own")
    if options.context is not None and options.stride is not None:
        raise EvaluationError("give context or stride, not both: stride = window - context + 1")
    stride = options.stride
    if stride is None:
        stride = options.window + 1 - (1 if options.context is None else options.context)
    _check(options.window, stride)
    return stride


def _check(window: int, stride: int) -> None:
    if not 1 <= stride <= window:
        raise EvaluationError(
            f"the stride must be between 1 and the window {window}, got {stride}"
            " (stride = window - context + 1)"
        )


def perplexity(
    model: Model,
    documents: Sequence[Document],
    *,
    separator: int,
    window: int | None = None,
    stride: int | None = None,
    edges: Sequence[int] | None = None,
    norms: bool = False,
    batch_size: int = 16,
    piece: int = 512,
) -> Result:
    """Scores every token of the documents once.

    Args:
      model: the model.
      documents: what to score, each apart from the others.
      separator: the token before a document's first.
      window: tokens of a rolling window; None carries the memory over whole documents.
      stride: tokens that a window scores, the first one aside, which scores all; the window's size
        if None.
      edges: of the buckets of the curve by position, ascending from 0; None draws none.
      norms: adds the norms of the memories to the curve.
      batch_size, piece: see `score`.

    Returns:
      `loss` (nats per token), `perplexity` (per token), `bits_per_byte`, and, if all words are
      known, `word_perplexity`, exp of the nats per word. The standard error of `bits_per_byte` is
      over documents. Curves have `start` (of each bucket, in tokens), `tokens`, `loss`,
      `bits_per_byte` and, of norms, `memory_norm`, a list for each memory.

    Raises:
      EvaluationError: a size that cannot be, or no memory whose norm could be taken.
    """
    curve = _Curve(edges, documents) if edges is not None else None
    nats = document_nats(
        model,
        [document.ids for document in documents],
        separator=separator,
        window=window,
        stride=stride,
        batch_size=batch_size,
        piece=piece,
        norms=norms,
        add=curve and curve.add,
    )
    tokens = sum(len(d.ids) for d in documents)
    sizes = np.array([d.bytes for d in documents], float)
    bits = nats / math.log(2)
    loss = math.fsum(nats) / tokens
    figures = {
        "loss": loss,
        "perplexity": exponential(loss),
        "bits_per_byte": math.fsum(bits) / sizes.sum(),
    }
    counts: dict[str, int | float] = {"documents": len(documents), "tokens": tokens}
    counts["bytes"] = _whole(sizes.sum())
    if all(d.words is not None for d in documents):
        counts["words"] = sum(d.words for d in documents)
        figures["word_perplexity"] = exponential(math.fsum(nats) / counts["words"])
    return Result(
        {**figures, "nats": math.fsum(nats)},
        known({"bits_per_byte": ratio_error(bits, sizes)}),
        counts,
        curve.lists() if curve else {},
    )


def document_nats(
    model: Model,
    documents: Sequence[np.ndarray],
    *,
    separator: int,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    piece: int = 512,
    norms: bool = False,
    add: Callable[[int, int, np.ndarray, np.ndarray | None], None] | None = None,
) -> np.ndarray:
    """Nats of each document, float64 `[documents]`; the arguments as of `perplexity`.

    Args:
      documents: ids `[n]` each, without a separator.
      add: is called with what is found: the document's number, the first token that is scored, the
        log probabilities from there on, and the norms, if they are asked for.
    """
    sequences: list[np.ndarray] = []
    places: list[tuple[int, int, int]] = []  # document, tokens [first, stop) that are scored
    for number, document in enumerate(documents):
        ids = np.concatenate([[separator], document.astype(np.int32)])
        windows: Iterable[tuple[int, int, int]] = [(0, 0, len(document))]
        if window is not None:
            windows = rolling_windows(len(document), window, window if stride is None else stride)
        for begin, first, stop in windows:
            sequences.append(ids[begin : stop + 1])
            places.append((number, first, stop))
    nats = np.zeros(len(documents))
    scores = score(model, sequences, batch_size=batch_size, piece=piece, norms=norms)
    for scored in scores:
        number, first, stop = places[scored.index]
        logprobs = scored.logprobs[len(scored.logprobs) - (stop - first) :].astype(float)
        nats[number] -= math.fsum(logprobs)
        if add:
            add(number, first, logprobs, scored.norms)
    return nats


def rolling_windows(total: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows that score each of `total` tokens once.

    Of the text with the separator before it, a window reads `[begin, stop)` and scores the text's
    tokens `[first, stop)`. The first scores up to `window` tokens, each later one `stride` tokens,
    the last perhaps fewer, and all but the first read `window` tokens.

    Yields:
      begin, first, stop.

    Raises:
      EvaluationError: a stride outside 1 .. window.
    """
    _check(window, stride)
    yield 0, 0, (stop := min(window, total))
    while stop < total:
        first, stop = stop, min(stop + stride, total)
        yield stop - window, first, stop


def bucket_edges(longest: int, bucket: int | None = None) -> list[int]:
    """Starts of the buckets of positions: every `bucket` tokens, or 0, 64, 128, 256 ..."""
    if bucket is None:
        edges = [0]
        while (edge := max(FIRST_EDGE, 2 * edges[-1])) < longest:
            edges.append(edge)
        return edges
    if bucket < 1:
        raise EvaluationError(f"bucket must be at least 1, got {bucket}")
    return [*range(0, longest, bucket)]


def _whole(x: float) -> int | float:
    return int(x) if float(x).is_integer() else float(x)


class _Curve:
    """Sums by position in the document."""

    def __init__(self, edges: Sequence[int], documents: Sequence[Document]):
        self.edges = np.asarray(edges)
        # Bytes of a token, alike in a document.
        self.shares = [d.bytes / len(d.ids) for d in documents]
        self.nats, self.tokens, self.bytes = np.zeros((3, len(self.edges)))
        self.norms: np.ndarray | None = None

    def add(
        self, document: int, first: int, logprobs: np.ndarray, norms: np.ndarray | None
    ) -> None:
        """Adds the tokens of a document from its token `first` on."""
        size = len(self.edges)
        at = np.arange(first, first + len(logprobs))
        at = np.searchsorted(self.edges, at, side="right") - 1
        counts = np.bincount(at, minlength=size)
        self.nats -= np.bincount(at, logprobs, size)
        self.tokens += counts
        self.bytes += counts * self.shares[document]
        if norms is not None:
            sums = np.stack([np.bincount(at, layer, size) for layer in norms])
            self.norms = sums if self.norms is None else self.norms + sums

    def lists(self) -> dict[str, list]:
        """The means."""
        kept = self.tokens > 0
        nats, tokens, sizes = self.nats[kept], self.tokens[kept], self.bytes[kept]
        found = {
            "start": self.edges[kept].tolist(),
            "tokens": tokens.astype(int).tolist(),
            "loss": (nats / tokens).tolist(),
            "bits_per_byte": (nats / math.log(2) / sizes).tolist(),
        }
        if self.norms is not None:
            found["memory_norm"] = (self.norms[:, kept] / tokens).tolist()
        return found
