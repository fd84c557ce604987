"""Corpora: the standard library, files, folders and patterns, the split, and the errors."""

import hashlib
import platform
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from miras_jax.data import ByteTokenizer, Corpus, load_corpus
from miras_jax.data.sources import _read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty documents in two folders, and files that are no part of the text."""
    for i in range(40):
        path = tmp_path / f"part{i % 2}" / f"{i:02}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"document {i}\n", "utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "note.txt").write_text("hidden")
    (tmp_path / "image.png").write_bytes(b"\xff\xd8")
    return tmp_path


def documents(ids: np.ndarray) -> set[str]:
    """The texts between the separators of `ids`."""
    cuts = np.flatnonzero(ids == ByteTokenizer.separator)
    return {ByteTokenizer().decode(piece) for piece in np.split(ids, cuts)}


def test_standard_library() -> None:
    corpus = load_corpus("stdlib")
    assert corpus.train.dtype == corpus.validation.dtype == np.uint16
    share = corpus.validation.size / (corpus.train.size + corpus.validation.size)
    assert 0.03 < share < 0.15
    assert corpus.train.size > 5_000_000
    assert corpus.name == "stdlib"
    assert corpus.version == platform.python_version()
    for fact in (corpus.version, corpus.sha256, " files, ", " bytes, "):
        assert fact in corpus.description


def test_standard_library_has_no_tests_nor_installed_packages() -> None:
    root, texts = _read("stdlib")
    names = [path.relative_to(root).as_posix() for path in texts]
    assert root == Path(sysconfig.get_path("stdlib"))
    assert "json/decoder.py" in names
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]


def test_folder_has_every_document_once(folder: Path) -> None:
    corpus = load_corpus(str(folder))
    train, held_out = documents(corpus.train), documents(corpus.validation)
    assert train | held_out == {f"document {i}\n" for i in range(40)}
    assert not train & held_out
    assert 1 <= len(held_out) <= 10
    assert ": 40 files, " in corpus.description
    text = "".join(f"document {i}\n" for i in [*range(0, 40, 2), *range(1, 40, 2)])
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert corpus.version == corpus.sha256[:12]


def test_documents_stay_on_their_side_of_the_split(folder: Path) -> None:
    before = documents(load_corpus(str(folder)).validation)
    for i in range(0, 40, 3):
        (folder / f"part{i % 2}" / f"{i:02}.txt").unlink()
    (folder / "new.md").write_text("new")
    after = documents(load_corpus(str(folder)).validation)
    gone = {f"document {i}\n" for i in range(0, 40, 3)}
    assert after - {"new"} == before - gone


def test_pattern_and_folder_agree(folder: Path) -> None:
    by_folder, by_pattern = load_corpus(str(folder)), load_corpus(str(folder / "**" / "*.txt"))
    assert by_folder.sha256 == by_pattern.sha256
    np.testing.assert_array_equal(by_folder.validation, by_pattern.validation)


def test_of_two_files_one_is_held_out(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    corpus = load_corpus(str(tmp_path))
    assert corpus.train.size == corpus.validation.size == 1


def test_last_twentieth_of_a_single_file_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "letter"
    path.write_text("é" * 95 + "z" * 5, "utf-8")
    corpus = load_corpus(str(path))
    assert documents(corpus.train) == {"é" * 95}
    assert documents(corpus.validation) == {"z" * 5}


def test_explicit_validation(folder: Path, tmp_path: Path) -> None:
    corpus = load_corpus(str(folder / "part0"), validation=str(folder / "part1"))
    assert documents(corpus.train) == {f"document {i}\n" for i in range(0, 40, 2)}
    assert documents(corpus.validation) == {f"document {i}\n" for i in range(1, 40, 2)}
    assert "part0 with validation on " in corpus.description


def test_tokenizer_is_asked(folder: Path) -> None:
    class Characters:
        vocab_size = 0x110000 + 1
        separator = 0x110000

        def encode(self, text: str) -> np.ndarray:
            return np.array([ord(character) for character in text], np.uint32)

    corpus: Corpus = load_corpus(str(folder), tokenizer=Characters())
    assert corpus.train.dtype == np.uint32
    assert (corpus.train == Characters.separator).any()


def test_newlines_and_bytes_are_kept(shared: Path) -> None:
    path = shared / "data/wikitext/wiki.test.raw"
    corpus = load_corpus(str(path))
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert corpus.train.size + corpus.validation.size == path.stat().st_size


def test_errors_are_one_clear_line(folder: Path) -> None:
    bad = folder / "part1" / "bad.txt"
    cases = {
        str(folder / "nowhere"): "is no file or folder",
        str(folder / "*.nothing"): "nor a pattern that any file matches",
        str(folder / "empty.txt"): "holds no text",
        str(folder / ".git"): None,
        str(bad): r"bad.txt is not UTF-8 text: bad byte at offset 3",
        str(folder): r"bad.txt is not UTF-8 text: bad byte at offset 3",
    }
    bad.write_bytes(b"abc\xff")
    (folder / "pictures").mkdir()
    cases[str(folder / "pictures")] = "no file with a suffix of text"
    for source, message in cases.items():
        if message is None:
            assert load_corpus(source).name == source
            continue
        with pytest.raises(ValueError, match=message) as caught:
            load_corpus(source)
        assert "\n" not in str(caught.value)


def test_a_text_may_not_validate_itself(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"00.txt is in both the training and the validation"):
        load_corpus(str(folder), validation=str(folder / "part0"))
