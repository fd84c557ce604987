"""Text to token ids and back: the interface, and the byte-level tokenizer that is the default."""

import codecs
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Tokenizer(Protocol):
    """What the library asks of a tokenizer.

    `separator` is the id between two documents. It stands for no text: `encode` never makes it
    and decoding drops it.
    """

    vocab_size: int
    separator: int

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, unsigned integers [length]."""
        ...

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of `ids` [length], with U+FFFD where they are no complete characters."""
        ...

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of `ids` in pieces, each as soon as its characters are complete."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0-255, and 256 as the separator of documents."""

    vocab_size = 257
    separator = 256

    def encode(self, text: str) -> np.ndarray:
        """Return the UTF-8 bytes of `text`, uint16 [bytes]."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint16)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of `ids` [length], the same as `decode_stream` gives in pieces."""
        tokens = np.asarray(ids, np.int64)
        if outside := tokens[(tokens < 0) | (tokens >= self.vocab_size)].tolist():
            raise ValueError(f"token id {outside[0]} is not in 0..{self.vocab_size - 1}")
        documents = np.split(tokens, np.flatnonzero(tokens == self.separator))
        return "".join(
            document[document != self.separator]
            .astype(np.uint8)
            .tobytes()
            .decode("utf-8", "replace")
            for document in documents
        )

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of `ids` character by character, none before its last byte has come.

        Bytes that make no character, also those cut off by a separator or by the end, become
        U+FFFD. Raises ValueError at an id outside 0-256.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in map(int, ids):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is not in 0..{self.vocab_size - 1}")
            ends = token == self.separator
            if piece := decoder.decode(b"" if ends else bytes([token]), final=ends):
                yield piece
        if piece := decoder.decode(b"", final=True):
            yield piece
