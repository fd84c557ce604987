"""What is to be tokenized, and its division into shards.

The division depends on the sources and the options alone, never on processes or on what is done.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from miras_jax.data import huggingface
from miras_jax.data.compression import split_name
from miras_jax.data.documents import FORMATS, format_of, is_known
from miras_jax.data.errors import DataError, need
from miras_jax.data.records import Piece
from miras_jax.data.storage import (
    files_below,
    full_name,
    local_copy,
    open_file,
    size_and_stamp,
)
from miras_jax.data.tables import check_column


@dataclasses.dataclass(frozen=True)
class Source:
    """A file, or a split of `datasets`.

    Attributes:
      path: as it is found, with its protocol.
      format: one of `FORMATS`.
      size: in bytes as it lies there.
      stamp: changes when it is written again.
    """

    path: str
    format: str
    size: int
    stamp: str


def find_sources(
    names: Sequence[str], format_: str = "auto", besides: str | None = None
) -> list[Source]:
    """Returns the files that the names stand for: in the order of the names, those of a name sorted
    by path, each once.

    Args:
      names: files, folders (all files with a name of text, JSON lines, Parquet or ArrayRecord) and
        patterns, also URLs; `hf:NAME:SPLIT` for Hugging Face's `datasets`.
      format_: one of `FORMATS` for all files, or `auto`, which goes by their names.
      besides: a folder of which no file is taken where it lies in a folder that is named.

    Raises:
      DataError: a name stands for nothing.
    """
    found: dict[str, Source] = {}
    for name in names:
        if name.startswith(huggingface.PREFIX):
            table = huggingface.load(name)
            found.setdefault(name, Source(name, "hf", table.data.nbytes, str(len(table))))
            continue
        paths, is_folder = files_below(name)
        if besides is not None and is_folder:
            below = full_name(besides) + "/"
            paths = [path for path in paths if not full_name(path).startswith(below)]
        if not paths:
            raise DataError(f"{name} is no file or folder with files, nor a pattern that matches")
        for path in _known(name, paths) if is_folder else paths:
            kind = format_of(path) if format_ == "auto" else format_
            found.setdefault(path, Source(path, kind, *size_and_stamp(path)))
    return [*found.values()]


def _known(folder: str, paths: list[str]) -> list[str]:
    """Of a folder only what looks like documents; a file or a pattern was asked for."""
    if not (known := [path for path in paths if is_known(path)]):
        raise DataError(
            f"{folder} holds no file with a name of text, JSON lines, Parquet or ArrayRecord;"
            f" for others give a pattern such as {folder.rstrip('/')}/**/*.log"
        )
    return known


def shards(sources: Sequence[Source], shard_bytes: int, field: str) -> list[list[Piece]]:
    """Divides the sources into shards of about `shard_bytes` of input.

    Files are cut where the format allows: between lines, row groups, records and rows. A compressed
    file, a text and a row group stay whole, however large.
    """
    pieces = (piece for source in sources for piece in _pieces(source, shard_bytes, field))
    divided: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        if not divided or size + piece.size > shard_bytes:
            divided.append([])
            size = 0
        divided[-1].append(piece)
        size += piece.size
    return divided


def _pieces(source: Source, shard_bytes: int, field: str) -> Iterator[Piece]:
    path, format_ = source.path, source.format
    if format_ == "jsonl" and split_name(path)[1] is None:
        yield from _equal(source, source.size, shard_bytes)
    elif format_ == "array_record":
        yield from _equal(source, _records(path), shard_bytes)
    elif format_ == "hf":
        table = huggingface.load(path)
        check_column(path, table.column_names, field)
        yield from _equal(source, len(table), shard_bytes)
    elif format_ == "parquet":
        yield from _row_groups(source, shard_bytes, field)
    else:
        yield Piece(path, format_, 0, None, source.size)


def _equal(source: Source, length: int, shard_bytes: int) -> Iterator[Piece]:
    """Cuts 0..length into equal parts of at most `shard_bytes` each, by guess."""
    parts = max(1, min(length, math.ceil(source.size / shard_bytes)))
    cuts = [length * part // parts for part in range(parts + 1)]
    for part, (start, stop) in enumerate(itertools.pairwise(cuts)):
        size = source.size * (part + 1) // parts - source.size * part // parts
        yield Piece(source.path, source.format, start, stop, size)


def _records(path: str) -> int:
    library = need("array_record.python.array_record_module")
    with local_copy(path) as copy:
        reader = library.ArrayRecordReader(copy)
        if not reader.ok():
            raise DataError(f"{path} is no ArrayRecord file, or is not complete")
        return reader.num_records()


def _row_groups(source: Source, shard_bytes: int, field: str) -> Iterator[Piece]:
    library, arrow = need("pyarrow.parquet"), need("pyarrow")
    with open_file(source.path) as file:
        try:
            table = library.ParquetFile(file)
        except arrow.ArrowInvalid as error:
            raise DataError(f"{source.path} is no Parquet file: {error}") from None
        check_column(source.path, table.schema_arrow.names, field)
        sizes = [
            table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)
        ]
    first, total = 0, 0
    for group, size in enumerate(sizes):
        if group > first and total + size > shard_bytes:
            yield Piece(source.path, "parquet", first, group, total)
            first, total = group, 0
        total += size
    yield Piece(source.path, "parquet", first, len(sizes), total)


def check_format(format_: str) -> None:
    """Refuses a format that there is not."""
    if format_ not in ("auto", *FORMATS[:-1]):
        raise DataError(f"format {format_!r} is not one of auto, {', '.join(FORMATS[:-1])}")
