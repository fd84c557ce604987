"""Text to a token set, in parallel processes, with the same bytes whatever stops it on the way.

The shards are fixed before the first is written. A run writes those that have no record yet, then
the manifest from all records, and last removes the records and `unfinished.json`, the request.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any, Protocol

from miras_jax.data.errors import DataError
from miras_jax.data.plan import Source, check_format, find_sources, shards
from miras_jax.data.records import RECORDS, Corrupt, Piece
from miras_jax.data.shard_processes import write_shards
from miras_jax.data.shard_writer import Job, dtype_of
from miras_jax.data.shards import FORMAT, MANIFEST, VERSION, VERSION_WITH_PROMPTS, TokenSet
from miras_jax.data.storage import Folder, is_remote, sha256_of, size_and_stamp
from miras_jax.data.vocabulary import Vocabulary, load_vocabulary

UNFINISHED = "unfinished.json"


class Watcher(Protocol):
    """What is told how far it has come."""

    def begin(self, total: int, done: int) -> None:
        """There are `total` bytes of input, `done` of them from an earlier run."""
        ...

    def advance(self, size: int, record: dict[str, Any]) -> None:
        """A shard of `size` bytes of input is written; `record` is of `write_shard`."""
        ...


def tokenize(
    sources: Sequence[str],
    out: str,
    *,
    tokenizer: str = "bytes",
    separator: str | int | None = None,
    field: str | tuple[str, str] = "text",
    format_: str = "auto",
    records: str = "example",
    shard_bytes: int = 64 << 20,
    workers: int | None = None,
    strict: bool = False,
    watcher: Watcher | None = None,
    wait: bool = False,
) -> dict[str, Any]:
    """Makes a token set, or finishes one that was begun.

    Args:
      sources: see `find_sources`.
      out: the folder, also a URL of fsspec; only this set may be in it.
      tokenizer, separator: see `load_vocabulary`.
      field: the name of the text in a JSON object, a column or a tf.train.Example; or of JSON lines
        those of a prompt and a completion: training on the set learns completions alone.
      format_: of the files, or `auto` to go by their names.
      records: what a record of ArrayRecord holds: `example` (tf.train.Example), `json` or `text`.
      shard_bytes: input of a shard, about.
      workers: processes; None takes one a processor.
      strict: whether the first corrupt line or record ends it; else they are counted.
      watcher: is told how far it has come.
      wait: whether to wait while another process makes it, and take what that made.

    Returns:
      The manifest.

    Raises:
      DataError: a source or the vocabulary cannot be read, the folder holds another set or other
        files, a source has changed since it was begun, or there is no text at all.
    """
    check_format(format_)
    if records not in RECORDS:
        raise DataError(f"records {records!r} is not one of {', '.join(RECORDS)}")
    for name, value in (("shard_bytes", shard_bytes), ("workers", workers)):
        if value is not None and value < 1:
            raise DataError(f"{name} must be at least 1, got {value}")
    vocabulary = load_vocabulary(tokenizer, separator)
    found = find_sources(sources, format_, besides=out)
    others = [source.path for source in found if source.format != "jsonl"]
    if not isinstance(field, str) and others:
        raise DataError(f"{others[0]} is no JSON lines: prompts and completions are read from such")
    options = {
        "field": field if isinstance(field, str) else [*field],
        "records": records,
        "shard_bytes": shard_bytes,
    }
    request = {
        "sources": [dataclasses.asdict(source) for source in found],
        "tokenizer": vocabulary.describe(),
        "options": options,
    }
    folder = Folder(out)
    folder.make()
    with folder.locked(wait):
        if MANIFEST in folder.names():
            manifest = _finished(folder, request)
            _check_strict(strict, manifest)
            return manifest
        _begin(folder, request)
        pieces = shards(found, shard_bytes, field)
        job = Job(folder.path, tokenizer, separator, field, records, strict)
        done = _write(job, folder, pieces, workers, watcher)
        _check_unchanged(found)
        manifest = _manifest(done, vocabulary, options)
        _check_strict(strict, manifest)  # of shards that an earlier run wrote
        if not manifest["tokens"]:
            raise DataError(f"there is no text in {', '.join(sources)}")
        if vocabulary.content:
            with folder.create(manifest["tokenizer"]["file"]) as file:
                file.write(vocabulary.content)
        with folder.create(MANIFEST) as file:
            file.write((json.dumps(manifest, indent=1) + "\n").encode())
        _tidy(folder, manifest)
    return manifest


def _begin(folder: Folder, request: dict[str, Any]) -> None:
    """Writes the request down, or compares it with that of the run which began."""
    names = folder.names()
    if UNFINISHED in names:
        _compare(json.loads(folder.read(UNFINISHED)), request, folder, "was begun with")
        return
    if strange := sorted(name for name in names if not name.endswith(".tmp")):
        raise DataError(f"{folder} holds {strange[0]} and is no token set: give an empty folder")
    with folder.create(UNFINISHED) as file:
        file.write(json.dumps(request).encode())


def _compare(there: dict, asked: dict, folder: Folder, how: str) -> None:
    """Refuses a request that would give another set, with the first difference."""
    for name in ("tokenizer", "options"):
        for key, value in asked[name].items():
            if there[name].get(key) != value:
                raise DataError(
                    f"{folder} {how} {name} {key} {there[name].get(key)!r}, asked is {value!r};"
                    " ask for the same or choose another folder"
                )
    for before, now in itertools.zip_longest(there["sources"], asked["sources"]):
        if before != now:
            name = (now or before)["path"]
            raise DataError(
                f"{name} was added, removed or changed since {folder} {how.split()[0]} made;"
                " choose another folder, or remove it to begin anew"
            )


def _finished(folder: Folder, request: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a set that is there already, after a look at it and at its sources."""
    manifest = json.loads(folder.read(MANIFEST))
    _tidy(folder, manifest)
    token_set = TokenSet.open(folder.path)
    written = 0 if is_remote(folder.path) else os.stat(f"{folder.path}/{MANIFEST}").st_mtime_ns
    hashes = {source["path"]: source["sha256"] for source in manifest["sources"]}
    asked = {**request, "sources": []}
    for source in request["sources"]:
        path, entry = source["path"], {key: source[key] for key in ("path", "size")}
        stamp = source["stamp"]
        newer = source["format"] != "hf" and not is_remote(path) and int(stamp) > written > 0
        asked["sources"].append(entry | {"sha256": sha256_of(path) if newer else hashes.get(path)})
    _compare(manifest, asked, folder, "was made with")
    token_set.verify()
    return manifest


def _write(
    job: Job,
    folder: Folder,
    pieces: list[list[Piece]],
    workers: int | None,
    watcher: Watcher | None,
) -> list[dict[str, Any]]:
    """Writes the shards that have no record, and returns the records of all in order."""
    names = folder.names()
    done = {
        number: json.loads(folder.read(f"{number:05}.json"))
        for number in range(len(pieces))
        if f"{number:05}.json" in names
    }
    sizes = [sum(piece.size for piece in shard) for shard in pieces]
    if watcher:
        watcher.begin(sum(sizes), sum(sizes[number] for number in done))
    left = [number for number in range(len(pieces)) if number not in done]
    for number, record in write_shards(job, pieces, left, workers or os.cpu_count() or 1):
        done[number] = record
        if watcher:
            watcher.advance(sizes[number], record)
    return [done[number] for number in range(len(pieces))]


def _manifest(
    records: list[dict[str, Any]], vocabulary: Vocabulary, options: dict[str, Any]
) -> dict[str, Any]:
    entries = ("name", "documents", "tokens", "bytes", "sha256", "index_sha256")
    counted = ("documents", "tokens", "bytes", "empty", "corrupt")
    return {
        "format": FORMAT,
        "version": VERSION if isinstance(options["field"], str) else VERSION_WITH_PROMPTS,
        "dtype": dtype_of(vocabulary.tokenizer.vocab_size).str,
        "tokenizer": vocabulary.describe(),
        "options": options,
        **{name: sum(record[name] for record in records) for name in counted},
        "problems": [problem for record in records for problem in record["problems"]],
        "shards": [{name: record[name] for name in entries} for record in records],
        "sources": [source for record in records for source in record["sources"]],
    }


def _tidy(folder: Folder, manifest: dict[str, Any]) -> None:
    """Removes what was only needed to go on."""
    records = {f"{shard['name']}.json" for shard in manifest["shards"]}
    for name in folder.names():
        if name in records | {UNFINISHED} or name.endswith(".tmp"):
            folder.remove(name)


def _check_strict(strict: bool, manifest: dict[str, Any]) -> None:
    if strict and manifest["corrupt"]:
        raise DataError(f"{Corrupt(*manifest['problems'][0])} (--strict)")


def _check_unchanged(sources: Sequence[Source]) -> None:
    """Refuses what was written to while it was read."""
    for source in sources:
        if source.format == "hf":
            continue  # a copy of its own, in its cache
        if size_and_stamp(source.path) != (source.size, source.stamp):
            raise DataError(f"{source.path} changed while it was read; remove the folder")
