"""Vocabularies: bytes, a `tokenizers` JSON file of Hugging Face, or a SentencePiece model.

All have the interface of `Tokenizer`. The separator is a token that stands for no text: where the
file itself marks the end of a text with one, that one is taken.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from miras_jax.data.errors import DataError, need
from miras_jax.data.storage import Folder, local_copy
from miras_jax.data.tokenizer import ByteTokenizer, Tokenizer

# What published tokenizers end a text with, the likeliest first.
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]")
FILES = {"huggingface": "tokenizer.json", "sentencepiece": "tokenizer.model"}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with what a manifest says of it.

    Attributes:
      tokenizer: the tokenizer.
      kind: `bytes`, `huggingface` or `sentencepiece`; `task` where tokens are no text.
      content: the file that it was made from, empty for bytes.
    """

    tokenizer: Tokenizer
    kind: str
    content: bytes = b""

    def describe(self) -> dict[str, Any]:
        """Plain JSON values; two vocabularies with the same give the same ids."""
        return {
            "kind": self.kind,
            "file": FILES.get(self.kind),
            "sha256": hashlib.sha256(self.content).hexdigest() if self.content else None,
            "vocab_size": self.tokenizer.vocab_size,
            "separator": self.tokenizer.separator,
        }


def load_vocabulary(name: str, separator: str | int | None = None) -> Vocabulary:
    """Loads a vocabulary.

    Args:
      name: `bytes`, or the path or URL of a `.json` file of Hugging Face `tokenizers` or a `.model`
        file of SentencePiece.
      separator: the token to put between documents; None takes the file's end of text.

    Raises:
      DataError: no such file, not one of these, or no separator in it.
    """
    if name == "bytes":
        if separator is not None:
            raise DataError(f"separator {separator!r}: bytes have their own, leave it out")
        return Vocabulary(ByteTokenizer(), "bytes")
    kinds = {".json": "huggingface", ".model": "sentencepiece"}
    if (kind := kinds.get(os.path.splitext(name)[1])) is None:
        raise DataError(
            f"tokenizer {name!r} is not known: give bytes, a tokenizer.json of Hugging Face"
            " tokenizers or a .model file of SentencePiece"
        )
    try:
        with local_copy(name) as path, open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise DataError(f"no tokenizer at {name}: there is no such file") from None
    return _build(kind, content, separator, name)


def saved_vocabulary(description: dict[str, Any], folder: Folder | None) -> Vocabulary:
    """Loads the vocabulary of a token set or of a run from the file that was kept with it.

    Args:
      description: what `Vocabulary.describe` gave.
      folder: where its file is; bytes have none.

    Raises:
      DataError: the file is missing or is another one.
    """
    if description["kind"] == "bytes":
        return Vocabulary(ByteTokenizer(), "bytes")
    if description["kind"] == "task":
        return Vocabulary(NoText(description["vocab_size"]), "task")
    name = description["file"]
    if name not in folder.names():
        raise DataError(f"{folder} has lost its tokenizer {name}")
    content = folder.read(name)
    if hashlib.sha256(content).hexdigest() != description["sha256"]:
        raise DataError(f"{name} in {folder} is not the tokenizer that it was made with")
    return _build(description["kind"], content, description["separator"], str(folder))


def _build(kind: str, content: bytes, separator: str | int | None, name: str) -> Vocabulary:
    library = {"huggingface": HuggingFaceTokenizer, "sentencepiece": SentencePieceTokenizer}[kind]
    return Vocabulary(library(content, separator, name), kind, content)


class NoText:
    """Stands for a tokenizer where tokens are no text, as those of synthetic tasks; it has neither
    a separator nor text to give."""

    separator = None

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        raise DataError("the model was trained on a synthetic task: its tokens are no text")

    def decode(self, ids: npt.ArrayLike) -> str:
        return self.encode("")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        return self.encode("")


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[npt.ArrayLike]:
    """Returns the ids of every text; a library's own loop over them is faster than ours."""
    batch = getattr(tokenizer, "encode_batch", None)
    return batch(texts) if batch else [tokenizer.encode(text) for text in texts]


class HuggingFaceTokenizer:
    """A `tokenizer.json`: ids of the text alone, nothing added, cut off or filled up.

    A special token that is spelled out in a text is encoded as the characters it is made of.
    """

    def __init__(self, content: bytes, separator: str | int | None = None, name: str = "tokenizer"):
        library = need("tokenizers")
        try:
            self._library = library.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"{name} is no file of Hugging Face tokenizers: {error}") from None
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = True
        ids = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        if separator is None:
            separator = next((token for token in SEPARATORS if token in ids), None)
        self.separator = ids.get(separator) if isinstance(separator, str) else separator
        if self.separator is None:
            raise DataError(_no_separator(name, separator))

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._library.encode(text, add_special_tokens=False).ids, np.uint32)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.ArrayLike]:
        encoded = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [text.ids for text in encoded]

    def decode(self, ids: npt.ArrayLike) -> str:
        return decode_whole(self._decode, ids, self.separator)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        return decode_pieces(self._decode, ids, self.separator)

    def _decode(self, ids: list[int]) -> str:
        return self._library.decode(ids, skip_special_tokens=True)


class SentencePieceTokenizer:
    """A SentencePiece model; it may normalise a text, then decoding gives the normalised one."""

    def __init__(self, content: bytes, separator: str | int | None = None, name: str = "tokenizer"):
        library = need("sentencepiece")
        try:
            self._library = library.SentencePieceProcessor(model_proto=content)
        except Exception as error:  # RuntimeError; TypeError where it holds nothing
            raise DataError(f"{name} is no SentencePiece model: {error}") from None
        self.vocab_size = self._library.vocab_size()
        if separator is None:
            found = self._library.eos_id()
        elif isinstance(separator, str):
            found = self._library.piece_to_id(separator)
            found = -1 if found == self._library.unk_id() else found
        else:
            found = separator
        if found < 0:
            raise DataError(_no_separator(name, separator))
        self.separator = found

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._library.encode(text), np.uint32)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.ArrayLike]:
        return self._library.encode(list(texts), num_threads=1)

    def decode(self, ids: npt.ArrayLike) -> str:
        return decode_whole(self._library.decode, ids, self.separator)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        return decode_pieces(self._library.decode, ids, self.separator)


def _no_separator(name: str, separator: str | int | None) -> str:
    if separator is None:
        return f"{name} marks no end of text: name the token to put between documents, --separator"
    return f"{name} has no token {separator!r} to put between documents"


def decode_whole(decode: Callable[[list[int]], str], ids: npt.ArrayLike, separator: int) -> str:
    """Returns the text of `ids`, document by document, without the separators."""
    tokens = np.asarray(ids, np.int64)
    documents = np.split(tokens, np.flatnonzero(tokens == separator))
    return "".join(decode(tokens[tokens != separator].tolist()) for tokens in documents)


def decode_pieces(
    decode: Callable[[list[int]], str], ids: Iterable[int], separator: int
) -> Iterator[str]:
    """Yields the text of `ids` in pieces, whole characters each, without the separators.

    A token may need the one before it (the space that SentencePiece drops at a text's start) and
    may end within a character: a few tokens are decoded again with each new one.
    """
    kept: list[int] = []  # tokens since the last but one piece; the first `shown` are out
    shown = 0
    for token in map(int, ids):
        if token == separator:
            if rest := decode(kept)[len(decode(kept[:shown])) :]:
                yield rest
            kept, shown = [], 0
            continue
        kept.append(token)
        text, before = decode(kept), decode(kept[:shown])
        if len(text) > len(before) and not text.endswith("\ufffd"):
            yield text[len(before) :]
            kept, shown = kept[shown:], len(kept) - shown
    if kept and (rest := decode(kept)[len(decode(kept[:shown])) :]):
        yield rest
