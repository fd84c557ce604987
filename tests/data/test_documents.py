"""Documents: every format and compression, any cut, and what is corrupt by file and number."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from miras_jax.data.documents import documents, format_of, is_known
from miras_jax.data.errors import DataError
from miras_jax.data.plan import find_sources, shards
from miras_jax.data.records import Corrupt, Piece
from tests.data.corpus import TEXTS, write_json_lines

zstandard = pytest.importorskip("zstandard")
parquet = pytest.importorskip("pyarrow.parquet")
arrow = pytest.importorskip("pyarrow")
array_record = pytest.importorskip("array_record.python.array_record_module")

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(path: Path, **changes) -> list:
    """All documents of a file, through the division into shards."""
    options = {"shard_bytes": 1 << 20, "field": "text", "records": "text", **changes}
    divided = shards(find_sources([str(path)]), options["shard_bytes"], options["field"])
    return [
        document
        for shard in divided
        for piece in shard
        for document in documents(piece, options["field"], options["records"])
    ]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_and_json_lines(tmp_path: Path, suffix: str) -> None:
    lines = write_json_lines(tmp_path / "a.jsonl").read_bytes()
    packed = tmp_path / f"b.jsonl{suffix}"
    packed.write_bytes(COMPRESS[suffix](lines))
    assert read(packed) == TEXTS
    text = tmp_path / f"c.txt{suffix}"
    text.write_bytes(COMPRESS[suffix](b"one\r\ntwo\n"))
    assert read(text) == ["one\r\ntwo\n"]
    assert is_known(str(packed))
    assert is_known(str(text))


def test_formats_by_name() -> None:
    names = {
        "c4-train.00000-of-01024.json.gz": "jsonl",
        "x.ndjson.zst": "jsonl",
        "x.parquet": "parquet",
        "c4.array_record-00000-of-00008": "array_record",
        "README": "text",
    }
    assert {name: format_of(name) for name in names} == names
    assert not is_known("README")


@pytest.mark.parametrize("shard_bytes", [1, 7, 60, 500, 10**6])
def test_cut_anywhere_every_line_is_read_once(tmp_path: Path, shard_bytes: int) -> None:
    """Also with characters of several bytes, empty lines and no newline at the end."""
    text = write_json_lines(tmp_path / "a.jsonl", TEXTS[:12]).read_text()
    path = tmp_path / "b.jsonl"
    path.write_text("\n\n" + text.replace("\n", "\n \n", 3).rstrip("\n"))
    assert read(path, shard_bytes=shard_bytes) == TEXTS[:12]


BAD_LINES = {
    2: (b'{"text": "half', "no JSON"),
    3: (b'{"text": 7}', "no text in 'text' but 7"),
    5: (b'{"body": "x"}', "no text in 'text'"),
    6: (b"[1]", "a JSON list, not an object"),
    8: (b'{"text": "caf\xe9"}', "not UTF-8, bad byte at offset 13"),
    9: (b'{"text": "\\ud83d"}', "half a character"),
    11: (b"[" * 200_000, "no JSON"),
}


@pytest.mark.parametrize("shard_bytes", [40, 10**6])
def test_corrupt_lines_have_their_number(tmp_path: Path, shard_bytes: int) -> None:
    good = b'{"text": "good"}'
    lines = [BAD_LINES.get(number, (good,))[0] for number in range(1, 13)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = read(path, shard_bytes=shard_bytes if shard_bytes > 100 else 20_000)
    bad = [document for document in found if isinstance(document, Corrupt)]
    assert [document for document in found if isinstance(document, str)] == ["good"] * 5
    assert [(x.path, x.unit, x.number) for x in bad] == [(str(path), "line", n) for n in BAD_LINES]
    for document, (_, reason) in zip(bad, BAD_LINES.values(), strict=True):
        assert reason in str(document)
        assert f"{path}, line {document.number}: " in str(document)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_file_that_is_cut_short_gives_what_it_holds(tmp_path: Path, suffix: str) -> None:
    texts = [f"{i} " + str(i**80) for i in range(3000)]
    whole = COMPRESS[suffix](write_json_lines(tmp_path / "a.jsonl", texts).read_bytes())
    path = tmp_path / f"b.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) * 3 // 4])
    *found, last = read(path)
    assert found == texts[: len(found)]
    assert len(found) < 3000
    assert isinstance(last, Corrupt)
    assert last.number == len(found) + 1
    path.write_bytes(b"not compressed at all")
    [only] = read(path)
    assert only.number == 1


def test_zstd_of_several_frames(tmp_path: Path) -> None:
    lines = write_json_lines(tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    compress = COMPRESS[".zst"]
    path = tmp_path / "b.jsonl.zst"
    path.write_bytes(b"".join(map(compress, lines)))
    assert read(path) == TEXTS


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\xff")
    [bad] = read(path)
    assert str(bad) == f"{path}, file: not UTF-8, bad byte at offset 3"


def write_parquet(path: Path, values: list, column: str = "text", group: int = 7) -> Path:
    parquet.write_table(
        arrow.table({column: arrow.array(values, arrow.string())}),
        path,
        row_group_size=group,
        compression="none",
    )
    return path


def test_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [*TEXTS[:20], None, *TEXTS[21:]])
    for shard_bytes in (1, 1000, 10**6):
        found = read(path, shard_bytes=shard_bytes)
        assert found[:20] + found[21:] == TEXTS[:20] + TEXTS[21:]
        assert str(found[20]) == f"{path}, row 20: no text in 'text'"
    with pytest.raises(
        DataError, match="has no column 'body' but text; name the text with --field"
    ):
        read(path, field="body")


def test_damaged_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TEXTS)
    data = bytearray(path.read_bytes())
    at = data.find(b"document 30")  # in the group of the rows 28 to 34
    data[at - 40 : at] = b"\xff" * 40
    path.write_bytes(bytes(data))
    found = read(path)
    bad = [document for document in found if isinstance(document, Corrupt)]
    assert bad
    assert {document.number for document in bad} <= set(range(28, 35))
    assert set(TEXTS[:28] + TEXTS[35:]) <= {
        document for document in found if isinstance(document, str)
    }
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"a.parquet is no Parquet file"):
        read(path)


def write_array_record(path: Path, records: list[bytes]) -> Path:
    writer = array_record.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_array_record(tmp_path: Path) -> None:
    path = write_array_record(tmp_path / "a.array_record", [text.encode() for text in TEXTS])
    for shard_bytes in (1000, 10**6):
        assert read(path, shard_bytes=shard_bytes) == TEXTS
    objects = [json.dumps({"text": text}).encode() for text in TEXTS]
    path = write_array_record(tmp_path / "b.array_record", objects)
    assert read(path, records="json") == TEXTS
    [*_, bad] = read(path, records="example")
    assert str(bad) == f"{path}, record 59: no tf.train.Example; see --records"


def test_damaged_array_record(tmp_path: Path) -> None:
    path = write_array_record(tmp_path / "a.array_record", [text.encode() * 9 for text in TEXTS])
    data = bytearray(path.read_bytes())
    data[706] ^= 0xFF
    path.write_bytes(bytes(data))
    bad = [document for document in read(path) if isinstance(document, Corrupt)]
    assert [(x.unit, "cannot be read" in x.reason) for x in bad] == [("record", True)]
    path.write_bytes(bytes(data[:1000]))
    with pytest.raises(
        DataError, match=r"a.array_record is no ArrayRecord file, or is not complete"
    ):
        read(path)


def test_real_files(shared: Path) -> None:
    folder = shared / "data/c4"
    lines = (folder / "train.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert read(folder / "train.jsonl", shard_bytes=300_000) == texts
    assert read(folder / "array_record", records="example", shard_bytes=300_000) == texts
    rows = read(folder / "train-00000.parquet")
    assert len(rows) == 200
    assert all(isinstance(row, str) for row in rows)


def test_disk_errors_are_no_corrupt_records(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(documents(Piece(str(tmp_path / "a.jsonl.gz"), "jsonl"), "text", "text"))
