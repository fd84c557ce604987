"""One shard of a token set: its pieces of text in, two files and a record of them out.

The files depend on the pieces and the options alone. The record, `NNNNN.json`, is written last: a
shard that has one is done.
"""

import array
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from miras_jax.data import huggingface, storage
from miras_jax.data.documents import documents
from miras_jax.data.errors import DataError
from miras_jax.data.records import Corrupt, Pair, Piece
from miras_jax.data.vocabulary import Vocabulary, encode_all, load_vocabulary

# Characters that are encoded at once: enough for a library's loop, little to hold.
AT_ONCE = 1 << 20
# Corrupt records of a shard that the manifest names; all are counted.
NAMED = 100


@dataclasses.dataclass(frozen=True)
class Job:
    """What all shards have in common; it is sent to other processes.

    Attributes:
      out: the folder.
      tokenizer, separator: see `load_vocabulary`.
      field, records: see `documents`; two fields are those of a prompt and a completion.
      strict: whether something corrupt ends it all.
    """

    out: str
    tokenizer: str
    separator: str | int | None
    field: str | tuple[str, str]
    records: str
    strict: bool


@functools.cache
def _vocabulary(tokenizer: str, separator: str | int | None) -> Vocabulary:
    return load_vocabulary(tokenizer, separator)


def dtype_of(vocab_size: int) -> np.dtype:
    """The type in which ids are stored."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def write_shard(job: Job, number: int, pieces: list[Piece]) -> dict[str, Any]:
    """Writes shard `number` and returns its record.

    Raises:
      DataError: a source has changed; or, if `job.strict`, the first that is corrupt in it.
    """
    folder, name = storage.Folder(job.out), f"{number:05}"
    tokenizer = _vocabulary(job.tokenizer, job.separator).tokenizer
    dtype = dtype_of(tokenizer.vocab_size)
    record: dict[str, Any] = {"name": name, "empty": 0, "corrupt": 0, "problems": []}
    # After each document: tokens, bytes of text; with prompts, those of the prompts too.
    rows = [array.array("q", [0]) for _ in range(2 if isinstance(job.field, str) else 4)]
    with folder.create(f"{name}.bin") as file:
        digested = _Digested(file)
        for batch in _batches(_readable(job, pieces, record)):
            encoded = iter(encode_all(tokenizer, [text for texts in batch for text in texts]))
            for texts in batch:
                parts = [np.asarray(next(encoded)).astype(dtype) for _ in texts]
                lengths = [len(text.encode("utf-8")) for text in texts]
                digested.write(np.array([tokenizer.separator], dtype).tobytes())
                digested.write(b"".join(ids.tobytes() for ids in parts))
                counts = (1 + sum(map(len, parts)), sum(lengths), len(parts[0]), lengths[0])
                for row, count in zip(rows, counts, strict=False):
                    row.append(row[-1] + count)
        record["sha256"] = digested.sha256.hexdigest()
    with folder.create(f"{name}.npy") as file:
        digested = _Digested(file)
        np.lib.format.write_array(digested, np.array(rows, "<i8"))
        record["index_sha256"] = digested.sha256.hexdigest()
    record |= {"documents": len(rows[0]) - 1, "tokens": rows[0][-1], "bytes": rows[1][-1]}
    # Of the sources that begin in this shard, so that each is looked at once.
    record["sources"] = [_describe(piece, job.field) for piece in pieces if not piece.start]
    with folder.create(f"{name}.json") as file:
        file.write(json.dumps(record).encode())
    return record


class _Digested:
    """Writes to a file and takes the sha256 on the way."""

    def __init__(self, file: BinaryIO):
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def _readable(job: Job, pieces: list[Piece], record: dict[str, Any]) -> Iterator[tuple[str] | Pair]:
    """The documents that hold text, in the last of their parts; counts in `record` what is left
    out."""
    for piece in pieces:
        for document in documents(piece, job.field, job.records):
            if not isinstance(document, Corrupt):
                parts = document if isinstance(document, Pair) else (document,)
                record["empty"] += not parts[-1]
                if parts[-1]:
                    yield parts
                continue
            if job.strict:
                raise DataError(f"{document} (--strict)")
            record["corrupt"] += 1
            if len(record["problems"]) < NAMED:
                record["problems"].append([*document])


def _batches(documents: Iterator[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    batch, size = [], 0
    for texts in documents:
        batch.append(texts)
        size += sum(map(len, texts))
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _describe(piece: Piece, field: str | tuple[str, str]) -> dict[str, Any]:
    if piece.format == "hf":
        table = huggingface.load(piece.path)
        size, sha256 = table.data.nbytes, huggingface.sha256_of(piece.path, field)
    else:
        size, sha256 = storage.size_and_stamp(piece.path)[0], storage.sha256_of(piece.path)
    return {"path": piece.path, "size": size, "sha256": sha256}
