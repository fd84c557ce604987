"""What a configuration names: text, a token set, several by weight, held-out texts by name."""

from pathlib import Path

import numpy as np
import pytest

from miras_jax.data import DataError, TokenSet, keep_vocabulary, load_text, tokenize
from tests.data.corpus import TEXTS, write_json_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three token sets of bytes and one of words."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("sets")
    for i, name in enumerate(("web", "books", "valid")):
        source = write_json_lines(folder / f"{name}.jsonl", TEXTS[i * 20 : i * 20 + 20])
        tokenize([str(source)], str(folder / name), shard_bytes=900, workers=1)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(folder / "words.json"))
    name = str(folder / "words.json")
    tokenize([str(folder / "web.jsonl")], str(folder / "words"), tokenizer=name, workers=1)
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_one_set_holds_out_its_last_documents() -> None:
    text = load_text("web")
    [(train, weight)] = text.parts
    assert [*text.validation] == [""]
    held_out, whole = text.validation[""], TokenSet.open("web")
    assert weight == 1
    assert text.packed
    np.testing.assert_array_equal(np.concatenate([train[:], held_out[:]]), whole[:])
    assert held_out[0:1] == 256
    assert 0.05 <= held_out.size / whole.size < 0.2
    assert text.text_bytes("", held_out.size - 1, 8) == np.count_nonzero(held_out[:] != 256)


def test_of_one_long_document_the_last_part_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1000)
    tokenize([str(tmp_path / "a.txt")], str(tmp_path / "set"), workers=1)
    assert load_text(str(tmp_path / "set")).validation[""].size == 51


def test_several_sets_by_weight_and_by_name() -> None:
    text = load_text(("web=3", "books=1"), ("news=valid",))
    assert [(part.size, weight) for part, weight in text.parts] == [
        (TokenSet.open("web").size, 3.0),
        (TokenSet.open("books").size, 1.0),
    ]
    assert [*text.validation] == ["news"]
    assert "web (75.0%), books (25.0%)" in text.description
    assert [*load_text(("web", "books")).validation] == ["web", "books"]
    assert [*load_text("web", "valid").validation] == [""]
    assert [*load_text("web", "news=valid").validation] == ["news"]
    assert [*load_text("web", ("a=valid", "b=books")).validation] == ["a", "b"]


def test_identity_is_what_is_read_not_where(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(Path("web").resolve())
    assert load_text(str(tmp_path / "other")).sha256 == load_text("web").sha256
    hashes = [
        load_text(*arguments).sha256
        for arguments in (
            ("web",),
            ("web", "valid"),
            ("web", "a=valid"),
            (("web=2", "books"),),
            (("web=1", "books"),),
            (("books", "web"),),
        )
    ]
    assert len({*hashes}) == len(hashes)


def test_text_with_several_held_out_texts() -> None:
    text = load_text("web.jsonl", ("a=valid.jsonl", "b=books.jsonl"))
    assert not text.packed
    assert [*text.validation] == ["a", "b"]
    assert text.validation["a"].tobytes() != text.validation["b"].tobytes()
    size = Path("valid.jsonl").stat().st_size
    assert (
        text.text_bytes("a", text.validation["a"].size - 1, 8) == size - 1
    )  # no byte but the first
    alone = load_text("web.jsonl", "valid.jsonl")
    assert alone.sha256 not in (text.sha256, load_text("web.jsonl").sha256)


@pytest.mark.parametrize(
    ("source", "validation", "message"),
    [
        (("web=x", "books"), None, "'web=x' must be path=weight, but 'x' is no number"),
        (("web=0", "books"), None, "'web=0': the weight must be positive and finite"),
        (("web", "web"), None, "a token set is named twice"),
        ((), None, "no text is named"),
        (("web", "nowhere"), None, "nowhere is no token set"),
        (("web", "words"), None, "words and web are of different vocabularies"),
        ("web", "words", "words and web are of different vocabularies"),
        ("web", "web", "web is both trained on and held out"),
        ("web", ("valid",), "'valid' must be name=path"),
        ("web", ("a/b=valid",), "'a/b=valid' must be name=path"),
        ("web", ("a=valid", "a=books"), "two held-out texts have the name 'a'"),
        ("web", "valid.jsonl", "valid.jsonl is no token set"),
        ("web.jsonl", "valid", "valid is a token set, web.jsonl is text"),
        ("nowhere", None, "nowhere is no file or folder"),
    ],
)
def test_errors(source, validation, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_text(source, validation)
    assert "\n" not in str(caught.value)


def test_the_vocabulary_is_kept_with_a_run(tmp_path: Path) -> None:
    keep_vocabulary(load_text("web"), str(tmp_path))
    assert not [*tmp_path.iterdir()]
    keep_vocabulary(load_text("words"), str(tmp_path))
    assert (tmp_path / "tokenizer.json").read_bytes() == Path("words/tokenizer.json").read_bytes()


def test_an_unfinished_set_is_named() -> None:
    Path("begun").mkdir(exist_ok=True)
    Path("begun/unfinished.json").touch()
    with pytest.raises(DataError, match="begun is not finished: the same miras tokenize goes on"):
        load_text("begun")
