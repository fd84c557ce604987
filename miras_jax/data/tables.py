"""Documents out of files of records: Parquet, ArrayRecord and Hugging Face's `datasets`."""

import contextlib
from collections.abc import Iterable, Iterator

from miras_jax.data import huggingface, tf_example
from miras_jax.data.errors import DataError, need
from miras_jax.data.records import Corrupt, Piece, Reason, from_json, text_in
from miras_jax.data.storage import local_copy, open_file


def parquet(piece: Piece, field: str) -> Iterator[str | Corrupt]:
    """A document a row of a column of strings."""
    library = need("pyarrow.parquet")
    arrow = need("pyarrow")
    with open_file(piece.path) as file:
        table = library.ParquetFile(file)
        check_column(piece.path, table.schema_arrow.names, field)
        groups = range(piece.start, table.num_row_groups if piece.stop is None else piece.stop)
        row = sum(table.metadata.row_group(group).num_rows for group in range(piece.start))
        for group in groups:
            after = row + table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(1024, row_groups=[group], columns=[field]):
                    yield from _rows(piece.path, row, batch.column(0), field)
                    row += batch.num_rows
            except (arrow.ArrowException, OSError) as error:  # damaged pages: the group is lost
                yield Corrupt(piece.path, "row", row, f"{_broken_group(error)}, to row {after - 1}")
            row = after


def _broken_group(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return f"cannot be read: {error}"


def _rows(path: str, first: int, values: Iterable, field: str) -> Iterator[str | Corrupt]:
    for row, value in enumerate(values, first):
        try:
            text = text_in(value.as_py(), field)
        except UnicodeDecodeError as error:
            text = Reason(f"not UTF-8, bad byte at offset {error.start}")
        yield Corrupt(path, "row", row, text) if isinstance(text, Reason) else text


def check_column(path: str, names: Iterable[str], field: str) -> None:
    """Refuses a table without the column."""
    if field not in names:
        raise DataError(
            f"{path} has no column {field!r} but {', '.join(names)}; name the text with --field"
        )


def array_record(piece: Piece, field: str, records: str) -> Iterator[str | Corrupt]:
    """A document a record."""
    library = need("array_record.python.array_record_module")
    with (
        local_copy(piece.path) as path,
        contextlib.closing(library.ArrayRecordReader(path)) as file,
    ):
        stop = file.num_records() if piece.stop is None else piece.stop
        for number in range(piece.start, stop):
            try:
                [record] = file.read([number])
            except RuntimeError as error:
                yield Corrupt(piece.path, "record", number, f"cannot be read: {error}")
                continue
            text = _from_record(record, field, records)
            yield Corrupt(piece.path, "record", number, text) if isinstance(text, Reason) else text


def _from_record(record: bytes, field: str, records: str) -> str | Reason:
    if records == "json":
        return from_json(record, field)
    if records == "example":
        try:
            value = tf_example.text_of(record, field)
        except ValueError as error:
            return Reason(str(error))
        if value is None:
            return Reason(f"no text in {field!r}")
        record = value
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError as error:
        return Reason(f"not UTF-8, bad byte at offset {error.start}")


def hugging_face(piece: Piece, field: str) -> Iterator[str | Corrupt]:
    """A document a row."""
    table = huggingface.load(piece.path)
    check_column(piece.path, table.column_names, field)
    stop = len(table) if piece.stop is None else piece.stop
    for first in range(piece.start, stop, 1024):
        values = table[first : min(first + 1024, stop)][field]
        for row, value in enumerate(values, first):
            text = text_in(value, field)
            yield Corrupt(piece.path, "row", row, text) if isinstance(text, Reason) else text
