"""Reading token sets: any slice, document by document, bytes of text, and nothing read early."""

import pickle
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from miras_jax.data import DataError, TokenSet, tokenize
from tests.data.corpus import TEXTS, tokens_of, write_json_lines

TOKENS = tokens_of(TEXTS)
STARTS = np.flatnonzero(TOKENS == 256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts in shards of some documents each; one shard, of a corrupt line, is empty."""
    path = tmp_path_factory.mktemp("shards")
    lines = write_json_lines(path / "a.jsonl").read_text().splitlines()
    (path / "a.jsonl").write_text("\n".join([*lines[:30], "{" * 2000, *lines[30:]]))
    manifest = tokenize([str(path / "a.jsonl")], str(path / "set"), shard_bytes=500, workers=1)
    assert 0 in [shard["tokens"] for shard in manifest["shards"]]
    return path / "set"


def test_any_slice(folder: Path) -> None:
    tokens = TokenSet.open(str(folder))
    assert tokens.size == TOKENS.size
    np.testing.assert_array_equal(tokens[:], TOKENS)
    random = np.random.default_rng(0)
    for start, stop in random.integers(0, TOKENS.size + 9, (200, 2)).tolist():
        np.testing.assert_array_equal(tokens[start:stop], TOKENS[start:stop])
        if start < stop <= TOKENS.size:
            inside = STARTS[slice(*np.searchsorted(STARTS, (start, stop)))]
            np.testing.assert_array_equal(tokens.document_starts(start, stop), inside)
            ids = np.searchsorted(STARTS, np.arange(start, stop), side="right")
            found = tokens.segment_ids(start, stop)
            np.testing.assert_array_equal(found, ids - ids[0])
            text = np.count_nonzero(TOKENS[start:stop] != 256)
            assert tokens.text_bytes(start, stop) == pytest.approx(text, abs=1e-6)


def test_a_part_is_a_set_of_its_own(folder: Path) -> None:
    part = TokenSet.open(str(folder)).part(700, 2500).part(10, 1500)
    expected = TOKENS[710:2200]
    assert part.size == expected.size
    np.testing.assert_array_equal(part[5:900], expected[5:900])
    starts = np.flatnonzero(expected == 256)
    np.testing.assert_array_equal(part.document_starts(0, part.size), starts)
    assert part.text_bytes(0, part.size) == pytest.approx(np.count_nonzero(expected != 256))


def test_files_are_mapped_when_they_are_read(folder: Path) -> None:
    tokens = TokenSet.open(str(folder))
    files = tokens._files
    assert not files._tokens
    tokens[0:10]
    assert [*files._tokens] == [0]
    assert isinstance(files._tokens[0], np.memmap)
    tokens.segment_ids(0, 10)
    assert isinstance(files._offsets[0], np.memmap)
    again = pickle.loads(pickle.dumps(tokens))
    assert not again._files._tokens
    np.testing.assert_array_equal(again[:], TOKENS)


def test_bytes_of_words(tmp_path: Path) -> None:
    """With a vocabulary of words whole documents count exactly, parts by their tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<eos>": 0, "one": 1, "twelve": 2, "?": 3}, unk_token="?")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    texts = ["one twelve", "twelve  twelve one one", "é", "   ", "one"]
    write_json_lines(tmp_path / "a.jsonl", texts)
    name = str(tmp_path / "words.json")
    tokenize([str(tmp_path / "a.jsonl")], str(tmp_path / "set"), tokenizer=name, workers=1)
    tokens = TokenSet.open(str(tmp_path / "set"))
    assert tokens[:].tolist() == [0, 1, 2, 0, 2, 2, 1, 1, 0, 3, 0, 0, 1]
    starts = tokens.document_starts(0, tokens.size).tolist()
    ends = [*accumulate(len(text.encode()) for text in texts)]
    assert [tokens.text_bytes(0, start) for start in starts[1:]] == ends[:-1]
    assert tokens.text_bytes(0, tokens.size) == ends[-1]
    assert tokens.text_bytes(3, 6) == 22 * 2 / 4


def test_what_is_no_set(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no token set: it has no manifest.json"):
        TokenSet.open(str(tmp_path))
    text = (folder / "manifest.json").read_text().replace('"version": 1', '"version": 3')
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"version 3, this library reads .* versions 1 and 2"):
        TokenSet.open(str(tmp_path))
