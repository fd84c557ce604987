"""Documents to be scored, with the bytes and the words of their text."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np

from miras_jax.data import ByteTokenizer, DataError, TokenSet, Vocabulary, load_corpus
from miras_jax.data.documents import documents
from miras_jax.data.plan import find_sources, shards
from miras_jax.data.records import Corrupt
from miras_jax.data.shards import is_token_set
from miras_jax.evals.errors import EvaluationError

FORMATS = ("auto", "text", "jsonl", "parquet", "array_record", "wikitext")
_ARTICLE = re.compile(r"(?m)^(?= = [^=\n]+ = $)")


@dataclasses.dataclass(frozen=True)
class Document:
    """A text of its own.

    Attributes:
      ids: int `[n]`, its tokens, n above 0, without a separator.
      bytes: of its text as UTF-8; of a part of a document its share, each token counting alike.
      words: see `count_words`; None of a part.
    """

    ids: np.ndarray
    bytes: float
    words: int | None


def count_words(text: str) -> int:
    """Pieces between runs of white space, also an empty one before the first run and after the
    last: what lm-evaluation-harness divides by."""
    return len(re.split(r"\s+", text))


def read_documents(
    source: str,
    vocabulary: Vocabulary,
    *,
    format_: str = "auto",
    field: str = "text",
    limit: int | None = None,
    length: int | None = None,
    every: int | None = None,
) -> list[Document]:
    """Reads and tokenizes what is to be scored; empty documents are left out.

    Args:
      source: a token set; a file, folder or pattern as `miras tokenize` takes it; or `stdlib`, of
        which the part is read that training holds out.
      vocabulary: the model's.
      format_: of the files, one of `FORMATS`; `auto` goes by their names. `wikitext` is text that
        begins a document at every heading of the first level, as in WikiText's raw files.
      field: the name of the text in JSON objects, columns and tf.train.Examples.
      limit: documents to read, the first ones; None reads all.
      length: cuts each document into stretches of so many tokens, each a document, without the rest
        that is shorter.
      every: keeps the first of so many documents or stretches, and so on, a sample from the whole
        source; None keeps all.

    Raises:
      EvaluationError: nothing to score.
      DataError: the source cannot be read, or is a token set of another vocabulary.
    """
    if format_ not in FORMATS:
        raise EvaluationError(f"format {format_!r} is not one of {', '.join(FORMATS)}")
    for name, value in (("limit", limit), ("length", length), ("every", every)):
        if value is not None and value < 1:
            raise EvaluationError(f"{name} must be at least 1, got {value}")
    if source != "stdlib" and is_token_set(source):
        found = of_token_set(TokenSet.open(source), vocabulary, source)
    else:
        found = of_texts(_texts(source, format_, field), vocabulary)
    if length is not None:
        found = itertools.chain.from_iterable(_stretches(each, length) for each in found)
    kept = list(itertools.islice(itertools.islice(found, 0, None, every), limit))
    if not kept:
        longer = "" if length is None else f" of {length} tokens or more"
        raise EvaluationError(f"{source} holds no document{longer}")
    return kept


def of_texts(texts: Iterable[str], vocabulary: Vocabulary) -> Iterator[Document]:
    """The documents of texts."""
    for text in texts:
        if len(ids := vocabulary.tokenizer.encode(text)):
            yield Document(ids, len(text.encode()), count_words(text))


def of_token_set(found: TokenSet, vocabulary: Vocabulary, name: str) -> Iterator[Document]:
    """The documents of a token set; the bytes are those before tokenization."""
    if found.manifest["tokenizer"] != vocabulary.describe():
        raise DataError(f"{name} is of another vocabulary than the model's")
    starts = [*found.document_starts(0, found.size).tolist(), found.size]
    for start, stop in itertools.pairwise(starts):
        if stop - start > 1:  # a separator, then text
            ids = found[start + 1 : stop]
            words = count_words(vocabulary.tokenizer.decode(ids))
            yield Document(ids, found.text_bytes(start, stop), words)


def _texts(source: str, format_: str, field: str) -> Iterator[str]:
    if source == "stdlib":
        held_out, tokenizer = load_corpus(source).validation, ByteTokenizer()
        for ids in np.split(held_out, np.flatnonzero(held_out == tokenizer.separator)):
            yield tokenizer.decode(ids)
        return
    wikitext = format_ == "wikitext"
    found = find_sources([source], "text" if wikitext else format_)
    for piece in (piece for shard in shards(found, 1 << 62, field) for piece in shard):
        for text in documents(piece, field, "example"):
            if isinstance(text, Corrupt):
                raise DataError(str(text))
            if wikitext:
                yield from _ARTICLE.split(text)[1:]
            else:
                yield text


def _stretches(document: Document, length: int) -> list[Document]:
    total = len(document.ids)
    share = document.bytes * length / total
    return [
        Document(document.ids[at : at + length], share, None)
        for at in range(0, total - length + 1, length)
    ]
