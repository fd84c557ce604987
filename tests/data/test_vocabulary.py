"""Vocabularies: small ones made here, real ones where they are; round trips, pieces, errors."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from miras_jax.data.errors import DataError, need
from miras_jax.data.storage import Folder
from miras_jax.data.vocabulary import encode_all, load_vocabulary, saved_vocabulary

tokenizers = pytest.importorskip("tokenizers")
sentencepiece = pytest.importorskip("sentencepiece")

TEXT = "the memory learns what it reads, é 語 and <|endoftext|> </s>\n" * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE that cuts off and fills up, and a SentencePiece model."""
    folder = tmp_path_factory.mktemp("vocabulary")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<pad>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the memory learns what it reads"] * 9, trainer)
    bpe.enable_truncation(5)
    bpe.enable_padding(pad_id=1, pad_token="<pad>", length=8)
    bpe.save(str(folder / "tokenizer.json"))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 9),
        model_writer=model,
        vocab_size=285,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def names(folder: Path) -> list[str]:
    return ["bytes", str(folder / "tokenizer.json"), str(folder / "tokenizer.model")]


def assert_keeps(name: str, text: str) -> None:
    """Text comes back, whole and in pieces, and no separator is made of it."""
    tokenizer = load_vocabulary(name).tokenizer
    ids = np.asarray(tokenizer.encode(text))
    assert tokenizer.separator not in ids
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text
    both = [*ids, tokenizer.separator, *ids]
    assert tokenizer.decode(both) == text + text
    pieces = list(tokenizer.decode_stream(both))
    assert "".join(pieces) == text + text
    assert len(pieces) > 10
    assert not any("\ufffd" in piece for piece in pieces)
    many = encode_all(tokenizer, [text, "", text])
    assert [len(ids) for ids in many] == [len(ids), 0, len(ids)]
    np.testing.assert_array_equal(many[2], ids)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_text_is_kept(folder: Path, kind: int) -> None:
    assert_keeps(names(folder)[kind], TEXT)


def test_real_vocabularies(shared: Path) -> None:
    text = (shared / "data/novels/valid").glob("*.txt").__next__().read_text("utf-8")[2000:5000]
    for name, size, separator in (
        ("gpt-neox-20b.json", 50277, 0),
        ("mistral-v1.model", 32000, 2),
    ):
        path = str(shared / "data/tokenizers" / name)
        found = load_vocabulary(path).describe()
        assert (found["vocab_size"], found["separator"]) == (size, separator)
        assert_keeps(path, text)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_is_found_again_where_it_was_kept(folder: Path, tmp_path: Path, kind: int) -> None:
    vocabulary = load_vocabulary(names(folder)[kind])
    description = json.loads(json.dumps(vocabulary.describe()))
    kept = Folder(str(tmp_path))
    if kind:
        with pytest.raises(DataError, match="has lost its tokenizer tokenizer"):
            saved_vocabulary(description, kept)
        with kept.create(description["file"]) as file:
            file.write(vocabulary.content)
    again = saved_vocabulary(description, kept)
    assert again.describe() == vocabulary.describe()
    np.testing.assert_array_equal(again.tokenizer.encode(TEXT), vocabulary.tokenizer.encode(TEXT))
    if kind:
        (tmp_path / description["file"]).write_bytes(b"{}")
        with pytest.raises(DataError, match="is not the tokenizer that it was made with"):
            saved_vocabulary(description, kept)


def test_separator_of_ones_own(folder: Path) -> None:
    assert load_vocabulary(names(folder)[1], "<pad>").tokenizer.separator == 1
    assert load_vocabulary(names(folder)[2], "<s>").tokenizer.separator == 1
    for name in names(folder)[1:]:
        with pytest.raises(DataError, match="has no token '<nothing>'"):
            load_vocabulary(name, "<nothing>")
    with pytest.raises(DataError, match="bytes have their own"):
        load_vocabulary("bytes", "x")


def test_errors(tmp_path: Path) -> None:
    for name in ("a.json", "a.model"):
        with pytest.raises(DataError, match=f"no tokenizer at .*{name}"):
            load_vocabulary(str(tmp_path / name))
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="is no file of Hugging Face tokenizers"):
        load_vocabulary(str(tmp_path / "a.json"))
    (tmp_path / "a.model").write_text("no model")
    with pytest.raises(DataError, match="is no SentencePiece model"):
        load_vocabulary(str(tmp_path / "a.model"))
    with pytest.raises(DataError, match="'gpt2' is not known: give bytes, a tokenizer"):
        load_vocabulary("gpt2")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    words.save(str(tmp_path / "b.json"))
    with pytest.raises(
        DataError, match=r"b.json marks no end of text: name the token .*--separator"
    ):
        load_vocabulary(str(tmp_path / "b.json"))


def test_a_missing_library_is_named_with_the_command() -> None:
    with pytest.raises(DataError, match=r"library nowhere: pip install 'miras_jax\[data\]'"):
        need("nowhere.at_all")
    with pytest.raises(DataError, match=r"'.\[datasets\]' in a checkout"):
        need("nowhere", "datasets")
