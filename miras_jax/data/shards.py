"""Token sets: a folder with `manifest.json` and shards of token ids, read where they are needed.

A shard is two files. `NNNNN.bin` holds ids, little-endian uint16 or uint32 as the manifest says:
one document after another, a separator before each. `NNNNN.npy` holds int64 `[2, documents + 1]`:
for every document the tokens (0) and the bytes of text (1) that stand before it in the shard, and
the totals at the end. Where documents are prompts with completions it is int64
`[4, documents + 1]`, with the tokens (2) and the bytes (3) of the prompts alone.
"""

import bisect
import dataclasses
import functools
import json
from typing import Any

import numpy as np

from miras_jax.data.errors import DataError
from miras_jax.data.storage import Folder
from miras_jax.data.vocabulary import Vocabulary, saved_vocabulary

MANIFEST = "manifest.json"
FORMAT = "miras_jax token set"
# A reader of version 1 would take prompts for text to be learned.
VERSION, VERSION_WITH_PROMPTS = 1, 2


def is_token_set(path: str) -> bool:
    """Whether `path` is a folder that holds a token set, finished or not."""
    return bool({MANIFEST, "unfinished.json"} & Folder(path).names())


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSet:
    """The tokens `[start, stop)` of a token set; an array of them in what it can be asked.

    Attributes:
      folder: where it is.
      manifest: its description.
      start, stop: the part, in tokens of all shards one after another.
    """

    folder: Folder
    manifest: dict[str, Any]
    start: int
    stop: int

    @classmethod
    def open(cls, path: str) -> "TokenSet":
        """Opens a token set, all of it.

        Raises:
          DataError: there is none, it is not finished, of another version, or a file is missing or
            cut short. Contents are not looked at: `verify` does that.
        """
        folder = Folder(path)
        names = folder.names()
        if MANIFEST not in names:
            unfinished = "unfinished.json" in names
            raise DataError(
                f"{path} is not finished: the same miras tokenize goes on with it"
                if unfinished
                else f"{path} is no token set: it has no {MANIFEST}"
            )
        manifest = json.loads(folder.read(MANIFEST))
        known = (VERSION, VERSION_WITH_PROMPTS)
        if manifest.get("format") != FORMAT or manifest.get("version") not in known:
            raise DataError(
                f"{path} is {manifest.get('format')!r} version {manifest.get('version')},"
                f" this library reads {FORMAT!r} versions {known[0]} and {known[1]}"
            )
        width = np.dtype(manifest["dtype"]).itemsize
        for shard in manifest["shards"]:
            name, expected = f"{shard['name']}.bin", shard["tokens"] * width
            if name not in names or (size := folder.size(name)) != expected:
                found = "missing" if name not in names else f"{size} bytes long, not {expected}"
                raise DataError(f"{path} is damaged: {name} is {found}")
            if f"{shard['name']}.npy" not in names:
                raise DataError(f"{path} is damaged: {shard['name']}.npy is missing")
        return cls(folder, manifest, 0, manifest["tokens"])

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.stop - self.start

    @functools.cached_property
    def _firsts(self) -> list[int]:
        """The first token of every shard, counted from the set's."""
        counts = [shard["tokens"] for shard in self.manifest["shards"]]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()

    @functools.cached_property
    def _files(self) -> "_Files":
        return _Files(self.folder, self.manifest)

    @property
    def completions(self) -> bool:
        """Whether the documents are prompts with completions."""
        return self.manifest["version"] == VERSION_WITH_PROMPTS

    def examples(self) -> np.ndarray:
        """int64 [4, examples], of prompts with completions: the place of each one's separator, its
        tokens with the separator, those of its prompt, and the bytes of its completion. Only such
        as are in here whole."""
        found = [np.zeros((4, 0), np.int64)]
        for shard, first in enumerate(self._firsts[:-1]):
            offsets = self._files.offsets(shard)
            starts = offsets[0, :-1] + first - self.start
            lengths, text, prompts, prompt_bytes = np.diff(offsets, axis=1)
            table = np.stack([starts, lengths, prompts, text - prompt_bytes])
            found.append(table[:, (starts >= 0) & (starts + lengths <= self.size)])
        return np.concatenate(found, axis=1)

    def part(self, start: int, stop: int) -> "TokenSet":
        """The tokens `[start, stop)` of this one."""
        return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)

    def __getitem__(self, at: slice) -> np.ndarray:
        """A slice of ids, one dimension, of the set's type."""
        start, stop, _ = at.indices(self.size)
        pieces = [
            self._files.tokens(shard)[first:last]
            for shard, first, last in self._across(start, stop)
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, self.manifest["dtype"])

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Places in `[start, stop)` at which a document begins, with its separator, ascending."""
        pieces = [np.zeros(0, np.int64)]
        for shard, first, last in self._across(start, stop):
            starts = self._files.offsets(shard)[0, :-1]
            low, high = np.searchsorted(starts, (first, last))
            pieces.append(starts[low:high] + self._firsts[shard] - self.start)
        return np.concatenate(pieces)

    def segment_ids(self, start: int, stop: int) -> np.ndarray:
        """int32 `[stop - start]`: which document each token is of, counted from the first's."""
        ids = np.zeros(stop - start, np.int32)
        ids[self.document_starts(start + 1, stop) - start] = 1
        return np.cumsum(ids, dtype=np.int32)

    def text_bytes(self, start: int, stop: int) -> float:
        """Bytes of text, before tokenization, that the tokens `[start, stop)` stand for.

        Whole documents count exactly, and so do bytes as tokens. Of a document that is cut each
        token counts alike.
        """
        low, high = self._bytes_before(self.start + start), self._bytes_before(self.start + stop)
        return high - low

    def _bytes_before(self, position: int) -> float:
        shards = self.manifest["shards"]
        shard = bisect.bisect_right(self._firsts, position) - 1
        before = sum(shard["bytes"] for shard in shards[:shard])
        if shard == len(shards):
            return before
        offsets, local = self._files.offsets(shard), position - self._firsts[shard]
        document = int(np.searchsorted(offsets[0], local, side="right")) - 1
        (first, after), (size, size_after) = offsets[:, document : document + 2].tolist()
        text = after - first - 1  # its tokens without the separator
        share = max(local - first - 1, 0) / text if text else 0
        return before + size + (size_after - size) * share

    def _across(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The shards that `[start, stop)` lies in, with the places in them."""
        start, stop = start + self.start, stop + self.start
        found = []
        shard = bisect.bisect_right(self._firsts, start) - 1
        while start < stop:
            first, after = self._firsts[shard : shard + 2]
            if (last := min(stop, after)) > start:
                found.append((shard, start - first, last - first))
            start, shard = max(start, last), shard + 1
        return found

    def vocabulary(self) -> Vocabulary:
        """The vocabulary that it was made with."""
        return saved_vocabulary(self.manifest["tokenizer"], self.folder)

    def contents(self) -> list[str]:
        """sha256 of the tokens of every shard: what is in the set, wherever it is."""
        return [shard["sha256"] for shard in self.manifest["shards"]]

    def verify(self) -> None:
        """Compares every shard with the manifest's sha256.

        Raises:
          DataError: names the first that differs.
        """
        for shard in self.manifest["shards"]:
            for suffix, name in ((".bin", "sha256"), (".npy", "index_sha256")):
                if self.folder.sha256(shard["name"] + suffix) != shard[name]:
                    raise DataError(
                        f"{self.folder} is damaged: {shard['name']}{suffix} is not what the"
                        " manifest says; remove the folder and tokenize again"
                    )


class _Files:
    """The files of the shards, mapped when they are first read; left behind where it is pickled."""

    def __init__(self, folder: Folder, manifest: dict[str, Any]):
        self._folder, self._manifest = folder, manifest
        self._tokens: dict[int, Any] = {}
        self._offsets: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokens": {}, "_offsets": {}}

    def tokens(self, shard: int) -> Any:
        if shard not in self._tokens:
            entry = self._manifest["shards"][shard]
            dtype = np.dtype(self._manifest["dtype"])
            array = self._folder.array(f"{entry['name']}.bin", dtype, entry["tokens"])
            self._tokens[shard] = array
        return self._tokens[shard]

    def offsets(self, shard: int) -> np.ndarray:
        if shard not in self._offsets:
            name = f"{self._manifest['shards'][shard]['name']}.npy"
            self._offsets[shard] = self._folder.npy(name)
        return self._offsets[shard]
