"""Documents out of files: text, JSON lines, Parquet and ArrayRecord, plain or compressed.

What cannot be read is handed on as `Corrupt`, with the file and the number of the line or record;
reading goes on after it where the format allows.
"""

import os
from collections.abc import Iterator

from miras_jax.data import tables
from miras_jax.data.compression import damage, decompressed, split_name
from miras_jax.data.records import Corrupt, Pair, Piece, Reason, from_json
from miras_jax.data.sources import TEXT_SUFFIXES
from miras_jax.data.storage import open_file

FORMATS = ("text", "jsonl", "parquet", "array_record", "hf")
SUFFIXES = {".json": "jsonl", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def format_of(path: str) -> str:
    """The format that the name of a file says: text where it says nothing."""
    name, _ = split_name(path)
    if ".array_record" in name or ".arrayrecord" in name:
        return "array_record"
    return SUFFIXES.get(os.path.splitext(name)[1], "text")


def is_known(path: str) -> bool:
    """Whether the name of a file says that it holds documents; of a folder only these are read."""
    name, _ = split_name(path)
    return os.path.splitext(name)[1] in TEXT_SUFFIXES or format_of(path) != "text"


def documents(
    piece: Piece, field: str | tuple[str, str], records: str
) -> Iterator[str | Pair | Corrupt]:
    """Yields the documents of a piece, in order, and what is corrupt in it.

    Args:
      piece: what to read.
      field: the name of the text in a JSON object, a column or a tf.train.Example; of JSON lines
        also those of a prompt and a completion.
      records: what a record of ArrayRecord holds, one of `RECORDS`.

    Raises:
      DataError: the file has no such column, or a library is missing.
      OSError: the disk or the network fails.
    """
    if piece.format == "array_record":
        return tables.array_record(piece, field, records)
    readers = {"jsonl": _json_lines, "parquet": tables.parquet, "hf": tables.hugging_face}
    return readers[piece.format](piece, field) if piece.format in readers else _text(piece)


def _text(piece: Piece) -> Iterator[str | Corrupt]:
    """One document, the whole file."""
    try:
        with decompressed(piece.path) as file:
            yield file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Corrupt(piece.path, "file", None, f"not UTF-8, bad byte at offset {error.start}")
    except Exception as error:
        yield Corrupt(piece.path, "file", None, damage(error))


def _json_lines(piece: Piece, field: str | tuple[str, str]) -> Iterator[str | Pair | Corrupt]:
    """A document a line. A line belongs to the piece that its first byte is in."""
    with decompressed(piece.path) as file:
        number, before = 0, 0  # lines read here; lines before the piece, counted when asked for
        if piece.start:
            file.seek(piece.start - 1)
            file.readline()
        while piece.stop is None or file.tell() < piece.stop:
            try:
                line = file.readline()
            except Exception as error:
                yield Corrupt(piece.path, "line", number + 1, damage(error))
                return
            if not line:
                return
            number += 1
            if not (content := line.strip()):
                continue
            document = from_json(content, field)
            if isinstance(document, Reason):
                before = before or _lines_before(piece)
                document = Corrupt(piece.path, "line", before + number, document)
            yield document


def _lines_before(piece: Piece) -> int:
    """Counts the lines that begin before the piece."""
    if not piece.start:
        return 0
    with open_file(piece.path) as file:
        blocks = iter(lambda: file.read(min(1 << 20, piece.start - file.tell())), b"")
        newlines, last = 0, b""
        for block in blocks:
            newlines, last = newlines + block.count(b"\n"), block[-1:]
    return newlines + (last != b"\n")
