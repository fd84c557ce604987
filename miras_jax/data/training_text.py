"""What a run reads: its training text, or several by weight, and its held-out texts by name."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from miras_jax.data.completions import ExampleRows
from miras_jax.data.errors import DataError
from miras_jax.data.pipeline import is_completions
from miras_jax.data.shards import TokenSet, is_token_set
from miras_jax.data.sources import load_corpus
from miras_jax.data.storage import Folder, is_remote
from miras_jax.data.tokenizer import ByteTokenizer
from miras_jax.data.vocabulary import Vocabulary

# A token set of which nothing is held out by name gives its last documents, of about this part.
HELD_OUT = 1 / 20


@dataclasses.dataclass(frozen=True)
class TrainingText:
    """Tokens to train on and to evaluate on, all of one vocabulary.

    Attributes:
      parts: what to train on, with weights above 0; one array, or token sets.
      validation: held-out texts by name; the name is empty where there is one without.
      vocabulary: a description, see `Vocabulary.describe`.
      vocabulary_folder: where its file is, if it has one.
      name, description, sha256, version: as of `Corpus`.
    """

    parts: tuple[tuple[np.ndarray | TokenSet, float], ...]
    validation: dict[str, np.ndarray | TokenSet]
    vocabulary: dict[str, Any]
    vocabulary_folder: Folder | None
    name: str
    description: str
    sha256: str
    version: str

    @property
    def packed(self) -> bool:
        """Whether batches have segment ids."""
        return isinstance(self.parts[0][0], TokenSet)

    def text_bytes(self, name: str, targets: int, window: int) -> float:
        """Bytes of text that the first `targets` targets of a held-out text stand for, read in rows
        of `window`; of prompts with completions those of the completions."""
        tokens = self.validation[name]
        if is_completions(tokens):
            return ExampleRows(tokens, window).text_bytes(targets)
        if isinstance(tokens, TokenSet):
            return tokens.text_bytes(1, 1 + targets)
        return float(np.count_nonzero(tokens[1 : 1 + targets] != self.vocabulary["separator"]))


def too_long(text: TrainingText, window: int) -> str:
    """A line for each part whose examples do not all fit into a window; empty where all do."""
    parts = [tokens for tokens, _ in text.parts] + [*text.validation.values()]
    notes = [ExampleRows(tokens, window).note() for tokens in parts if is_completions(tokens)]
    return "".join(f"\n{note}" for note in notes if note)


def load_text(
    source: str | Sequence[str], validation: str | Sequence[str] | None = None
) -> TrainingText:
    """Opens what a configuration names.

    Args:
      source: a corpus of text or a token set (see `load_corpus`, `TokenSet`); or several token sets
        as "path=weight", of weight 1 where none is given.
      validation: the same kind of thing to hold out, or several as "name=path"; None holds out a
        part of the source, of several token sets a part of each under the name of its folder.

    Raises:
      DataError, ValueError, OSError: what is wrong with which entry.
    """
    sources = [(source, 1.0)] if isinstance(source, str) else [*map(_weighted, source)]
    held_out = _named(validation)
    if not sources:
        raise DataError("no text is named")
    if len(sources) == 1 and not is_token_set(sources[0][0]) and not is_remote(sources[0][0]):
        return _of_corpus(sources[0][0], held_out)
    return _of_token_sets(sources, held_out)


def _weighted(entry: str) -> tuple[str, float]:
    """Reads "path=weight"; a path of its own with "=" in it needs a weight after it."""
    path, equals, number = entry.rpartition("=")
    if not equals:
        return entry, 1.0
    try:
        weight = float(number)
    except ValueError:
        raise DataError(f"{entry!r} must be path=weight, but {number!r} is no number") from None
    if not 0 < weight < float("inf"):
        raise DataError(f"{entry!r}: the weight must be positive and finite")
    return path, weight


def _named(validation: str | Sequence[str] | None) -> dict[str, str]:
    """Reads "name=path"; what is no entry of a list and exists is a path."""
    if validation is None:
        return {}
    if isinstance(validation, str) and ("=" not in validation or os.path.exists(validation)):
        return {"": validation}
    found: dict[str, str] = {}
    for entry in [validation] if isinstance(validation, str) else validation:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path or "/" in name:
            raise DataError(f"{entry!r} must be name=path, as in web=tokens/web")
        if name in found:
            raise DataError(f"two held-out texts have the name {name!r}")
        found[name] = path
    return found


def _of_corpus(source: str, held_out: dict[str, str]) -> TrainingText:
    """Plain text as bytes, read whole."""
    if sets := [path for path in held_out.values() if is_token_set(path)]:
        raise DataError(f"{sets[0]} is a token set, {source} is text: give both as token sets")
    corpora = {
        name: load_corpus(source, validation=path)
        for name, path in (held_out or {"": None}).items()
    }
    first = next(iter(corpora.values()))
    sha256, description = first.sha256, first.description
    if len(corpora) > 1:
        sha256 = _sha256_of([corpus.sha256 for corpus in corpora.values()])
        others = ", ".join(f"{name} {held_out[name]}" for name in [*corpora][1:])
        description += f"; also held out: {others}"
    return TrainingText(
        parts=((first.train, 1.0),),
        validation={name: corpus.validation for name, corpus in corpora.items()},
        vocabulary=Vocabulary(ByteTokenizer(), "bytes").describe(),
        vocabulary_folder=None,
        name=source,
        description=description,
        sha256=sha256,
        version=first.version if len(corpora) == 1 else sha256[:12],
    )


def _of_token_sets(sources: list[tuple[str, float]], held_out: dict[str, str]) -> TrainingText:
    sets = {path: TokenSet.open(path) for path in [*dict(sources), *held_out.values()]}
    first_path, first = next(iter(sets.items()))
    for path, found in sets.items():
        if found.manifest["tokenizer"] != first.manifest["tokenizer"]:
            raise DataError(f"{path} and {first_path} are of different vocabularies")
    if len(dict(sources)) < len(sources):
        raise DataError("a token set is named twice; add up its weights")
    if held_out:
        if both := {path for path, _ in sources} & {*held_out.values()}:
            raise DataError(f"{min(both)} is both trained on and held out")
        parts = [(sets[path], weight) for path, weight in sources]
        validation = {name: sets[path] for name, path in held_out.items()}
    else:
        cuts = [(_cut(sets[path]), sets[path], weight) for path, weight in sources]
        parts = [(found.part(0, cut), weight) for cut, found, weight in cuts]
        names = _folder_names([path for path, _ in sources])
        validation = {
            name: found.part(cut, found.size)
            for name, (cut, found, _) in zip(names, cuts, strict=True)
        }
    # What is read, however the folders are called: the shards, the weights, the names.
    contents = {path: found.contents() for path, found in sets.items()}
    identity = [[contents[path], weight] for path, weight in sources]
    identity += [[name, contents[path]] for name, path in held_out.items()]
    sha256 = _sha256_of(identity)
    total = sum(weight for _, weight in sources)
    said = [f"{path} ({weight / total:.1%})" for path, weight in sources]
    tokens = sum(part.size for part, _ in parts)
    return TrainingText(
        parts=tuple(parts),
        validation=validation,
        vocabulary=first.manifest["tokenizer"],
        vocabulary_folder=first.folder,
        name=", ".join(path for path, _ in sources),
        description=f"{', '.join(said)}: {tokens:,} tokens of a vocabulary of"
        f" {first.manifest['tokenizer']['vocab_size']:,}, sha256 {sha256}",
        sha256=sha256,
        version=sha256[:12],
    )


def _cut(found: TokenSet) -> int:
    """Where the held-out part begins: at a document, unless one fills all that may be held out."""
    latest = int(found.size * (1 - HELD_OUT))
    starts = found.document_starts(found.size // 2, latest + 1)
    if found.completions and not starts.size:
        raise DataError(
            f"{found.folder} has too few examples to hold some out: give others as data.validation"
        )
    return int(starts[-1]) if starts.size else latest


def _folder_names(paths: list[str]) -> list[str]:
    """What the held-out parts are called: nothing where there is one, else after their folders."""
    if len(paths) == 1:
        return [""]
    names = [os.path.basename(path.rstrip("/")) for path in paths]
    return names if len({*names}) == len(names) else [f"{name}{i}" for i, name in enumerate(names)]


def _sha256_of(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def keep_vocabulary(text: TrainingText, directory: str) -> None:
    """Writes the tokenizer's file into a run's folder, where sampling finds it again."""
    if text.vocabulary_folder is not None and (name := text.vocabulary["file"]):
        with Folder(directory).create(name) as file:
            file.write(text.vocabulary_folder.read(name))
