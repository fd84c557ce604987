"""Compressed files as plain ones: gzip, bz2, xz and zstd by the end of their names.

A file that ends too early or is damaged raises where that is met, never ends as if it were whole.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from miras_jax.data.errors import need
from miras_jax.data.storage import open_file

SUFFIXES = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".lzma": "xz", ".zst": "zstd"}


def split_name(path: str) -> tuple[str, str | None]:
    """The name of a file without the compression's suffix, and the compression, if any."""
    name = os.path.basename(path)
    stem, suffix = os.path.splitext(name)
    compression = SUFFIXES.get(suffix)
    return (stem if compression else name), compression


@contextlib.contextmanager
def decompressed(path: str) -> Iterator[BinaryIO]:
    """Opens a file, decompressing it if its name says so."""
    _, compression = split_name(path)
    with open_file(path) as raw:
        if compression == "zstd":
            yield io.BufferedReader(_Zstd(raw), 1 << 20)
        elif compression:
            library = {"gzip": gzip, "bz2": bz2, "xz": lzma}[compression]
            with library.open(raw) as file:
                yield file
        else:
            yield raw


class _Zstd(io.RawIOBase):
    """The frames of a file. The library's own reader takes a file that is cut short for whole."""

    def __init__(self, raw: BinaryIO):
        self._raw, self._frame, self._left = raw, self._new(), b""
        self._between = True  # no byte of the frame has been read yet

    def _new(self) -> Any:
        return need("zstandard").ZstdDecompressor().decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._between = self._new(), True
            if not (block := block or self._raw.read(1 << 17)):
                if self._between:
                    return 0
                raise EOFError("the file ends within a frame")
            self._between, self._left = False, self._frame.decompress(block)
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def damage(error: Exception) -> str:
    """Says what is wrong with the content of a file; errors of disk and network are raised."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    names = (EOFError, OSError, zlib.error, lzma.LZMAError, UnicodeDecodeError)
    if isinstance(error, names) or type(error).__name__ == "ZstdError":
        return f"cannot be read: {error}"
    raise error
