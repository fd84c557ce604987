"""Corpora: text from this machine, split into training and validation, as arrays of token ids."""

import hashlib
import itertools
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np

from miras_jax.data.tokenizer import ByteTokenizer, Tokenizer

TEXT_SUFFIXES = frozenset(
    ".c .cc .cfg .cpp .css .go .h .hpp .html .ini .java .js .md .py .rs .rst .sh .tex .toml .ts "
    ".txt .xml .yaml .yml".split()
)

# Folders of the standard library that are not its own prose and programs: third-party packages,
# tests, and generated data, one file of which would be most of the validation text.
_STDLIB_SKIPPED = frozenset(
    "dist-packages encodings idle_test pydoc_data site-packages test tests".split()
)
# Written when Python is built, so these would differ from machine to machine.
_STDLIB_GENERATED = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class Corpus:
    """Token ids of a text, with the separator of the tokenizer between documents.

    Attributes:
      train: ids [n], of the smallest unsigned type that holds the vocabulary (uint16 for bytes).
      validation: ids [m] of the held-out text, same type.
      name: `stdlib`, or the path or pattern as it was given.
      description: one line for logs: what was read, how much of it, and the sha256.
      sha256: of the text of all files as UTF-8, in the order of their paths, with those of an
        explicit validation text after the others.
      version: of Python for `stdlib`; for files the first twelve digits of the sha256.
    """

    train: np.ndarray
    validation: np.ndarray
    name: str
    description: str
    sha256: str
    version: str


def load_corpus(
    source: str, *, validation: str | None = None, tokenizer: Tokenizer | None = None
) -> Corpus:
    """Read and tokenize a corpus.

    Args:
      source: `stdlib` for the sources of this Python's standard library; or a text file, a folder
        (each file under it with one of `TEXT_SUFFIXES`, hidden ones left out), or a glob pattern,
        in which `**` stands for any folders. What exists is never read as a pattern.
      validation: held-out text, given in the same ways. None splits `source`: a file is held out
        with probability 3/32 by a hash of its path below the folder, so that it stays on its side
        when other files come and go. Of several files at least one is held out and one is not; of
        a single file the last 5% of the characters are.
      tokenizer: bytes by default.

    Raises:
      ValueError: nothing found, no text in it, a file that is not UTF-8 (the message has the byte
        offset), or one that stands in both texts.
    """
    root, texts = _read(source)
    if validation is None:
        train, held_out = _split(root, texts)
        every = [*texts.values()]
    else:
        _, held = _read(validation)
        if both := {path.resolve() for path in texts} & {path.resolve() for path in held}:
            raise ValueError(f"{min(both)} is in both the training and the validation text")
        train, held_out = [*texts.values()], [*held.values()]
        every = train + held_out
    data = "".join(every).encode("utf-8")
    sha256 = hashlib.sha256(data).hexdigest()
    python = platform.python_version()
    title = f"standard library of Python {python}" if source == "stdlib" else source
    title += f" with validation on {validation}" if validation else ""
    tokenizer = tokenizer or ByteTokenizer()
    return Corpus(
        train=_tokens(train, tokenizer),
        validation=_tokens(held_out, tokenizer),
        name=source,
        description=f"{title}: {len(every)} files, {len(data):,} bytes, sha256 {sha256}",
        sha256=sha256,
        version=python if source == "stdlib" else sha256[:12],
    )


def _read(source: str) -> tuple[Path, dict[Path, str]]:
    """Return the folder of `source` and the texts that are not empty, sorted by path."""
    # A stray byte in the standard library is no reason to stop; in one's own text it is an error.
    errors = "replace" if source == "stdlib" else "strict"
    root, paths = _find(source)
    texts = {}
    for path in sorted(paths, key=Path.as_posix):
        try:
            text = path.read_bytes().decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 text: bad byte at offset {error.start}"
            ) from None
        if text:
            texts[path] = text
    if not texts:
        raise ValueError(f"{source} holds no text")
    return root, texts


def _find(source: str) -> tuple[Path, Iterable[Path]]:
    """Return the folder of `source` and the paths of the files that it names."""
    if source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        return root, _stdlib_files(root)
    path = Path(source).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        found = [below for below in path.rglob("*") if below.suffix in TEXT_SUFFIXES]
        found = [file for file in found if not _hidden(file.relative_to(path)) and file.is_file()]
        if not found:
            raise ValueError(
                f"{source} holds no file with a suffix of text such as .txt or .py; "
                f"for others give a pattern such as {path / '**' / '*.log'}"
            )
        return path, found
    found = [Path(match) for match in glob(str(path), recursive=True) if os.path.isfile(match)]
    if not found:
        raise ValueError(f"{source} is no file or folder, nor a pattern that any file matches")
    fixed = itertools.takewhile(lambda part: not set(part) & set("*?["), path.parts)
    return Path(*fixed), found


def _stdlib_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in _STDLIB_SKIPPED and not name.startswith(_STDLIB_GENERATED)
        ]
        for name in files:
            if name.endswith(".py") and not name.startswith(_STDLIB_GENERATED):
                yield Path(folder, name)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _split(root: Path, texts: dict[Path, str]) -> tuple[list[str], list[str]]:
    """Hold out a part of the texts; the rule is in `load_corpus`."""
    if len(texts) == 1:
        [text] = texts.values()
        cut = len(text) - max(1, len(text) // 20)
        return [text[:cut]], [text[cut:]]
    digests = {
        path: hashlib.sha256(path.relative_to(root).as_posix().encode("utf-8")).digest()
        for path in texts
    }
    held_out = {path for path, digest in digests.items() if digest[0] < 24}
    if len(held_out) in (0, len(texts)):
        held_out = {min(digests, key=digests.__getitem__)}
    return (
        [text for path, text in texts.items() if path not in held_out],
        [text for path, text in texts.items() if path in held_out],
    )


def _tokens(texts: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids of all texts, the separator between them."""
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    separator = np.array([tokenizer.separator], dtype)
    pieces: list[np.ndarray] = []
    for text in texts:
        pieces += [tokenizer.encode(text).astype(dtype, copy=False), separator]
    return np.concatenate(pieces[:-1])
