"""What the folder of a run says of it: the metrics, each step once, and the model."""

import dataclasses
import json
import math
import os
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from miras_jax.training.checkpoint import find_checkpoint
from miras_jax.training.errors import UserError
from miras_jax.training.metrics import Record

RATE = "throughput/tokens_per_second"
ELAPSED = "throughput/elapsed_seconds"
BITS = "bits_per_byte"


@dataclasses.dataclass(frozen=True)
class Run:
    """The metrics of a run, each step of them once, and what is known of its model.

    Attributes:
      name: what it is called among the others.
      records: in the order of the steps.
      notes: what was wrong with the file and could be mended.
      model: the name of the memory; None where there is no checkpoint to ask.
      parameters: how many numbers are trained; None as before.
      tokens_per_step: None where neither the records nor a checkpoint say.
    """

    name: str
    records: list[Record]
    notes: tuple[str, ...] = ()
    model: str | None = None
    parameters: int | None = None
    tokens_per_step: int | None = None

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps int64 [N] and values float64 [N], or [N, memories] of a list, NaN for a null."""
        found = [(r["step"], r[name]) for r in self.records if name in r]
        steps = np.array([step for step, _ in found], np.int64)
        return steps, np.array([value for _, value in found], np.float64)

    def names(self, start: str, end: str = "") -> list[str]:
        """The figures whose name begins and ends so, in the order of their first record."""
        seen = dict.fromkeys(name for record in self.records for name in record)
        return [name for name in seen if name.startswith(start) and name.endswith(end)]

    @property
    def tokens(self) -> int | None:
        """Tokens trained on, or None."""
        return self.tokens_per_step and self.tokens_per_step * self.records[-1]["step"]

    def seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps int64 [N] and the seconds that the run had taken after them, float64 [N].

        Of runs that did not write it, the time of the steps alone, from their tokens/s: without
        compilation, evaluations and checkpoints. Empty where that is not known either.
        """
        steps, elapsed = self.series(ELAPSED)
        trained = [record for record in self.records if "train/loss" in record]
        if len(steps) == len(trained):
            return steps, elapsed
        rates = [record[RATE] for record in trained if RATE in record]
        if not rates or not self.tokens_per_step:
            return np.zeros(0, np.int64), np.zeros(0)
        middle = statistics.median(rates)  # for the records after a start, which have none
        steps = np.array([record["step"] for record in trained], np.int64)
        rates = np.array([record.get(RATE, middle) for record in trained])
        return steps, np.cumsum(np.diff(steps, prepend=0) * self.tokens_per_step / rates)


def read_runs(folders: Iterable[str]) -> list[Run]:
    """Reads runs, named by the last part of their folders, or by all of it where two would have
    the same name.

    Raises:
      UserError: a folder is no run, has no records yet, is damaged, or is given twice.
    """
    paths = [os.path.normpath(folder) for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"the run {path} is given twice; once is enough")
    short = [os.path.basename(os.path.abspath(path)) for path in paths]
    return [
        read_run(path, path if short.count(name) > 1 else name)
        for path, name in zip(paths, short, strict=True)
    ]


def read_run(folder: str, name: str) -> Run:
    """Reads the run in `folder`; see `read_runs`."""
    path = pathlib.Path(folder, "metrics.jsonl")
    if not path.parent.is_dir():
        raise UserError(f"no run at {folder}: there is no such folder")
    if not path.is_file():
        raise UserError(f"{folder} is no run: it has no metrics.jsonl")
    records, torn = parse(path)
    kept = once(records)
    if not any("train/loss" in record for record in kept):
        raise UserError(f"{path} has no record of training yet: let the run make its first step")
    notes = ["the last line of metrics.jsonl was cut off and is left out"] if torn else []
    if again := len(records) - len(kept):
        notes.append(f"{again} record(s) of steps that were trained again are left out")
    known = describe(pathlib.Path(folder))
    for record in kept:
        if "data/tokens" in record:
            known["tokens_per_step"] = record["data/tokens"] // record["step"]
    return Run(name, kept, tuple(notes), **known)


def parse(path: pathlib.Path) -> tuple[list[Record], bool]:
    """Reads a metrics file; returns the records and whether a torn last line was left out.

    Raises:
      UserError: another line than the last is no record.
    """
    lines = path.read_bytes().split(b"\n")
    if whole := lines[-1] == b"":
        lines.pop()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            good = isinstance(record, dict) and isinstance(record.get("step"), int)
        except ValueError:  # json's error and that of UTF-8
            good = False
        if number == len(lines) and not (good and whole):
            return records, True
        if not good:
            raise UserError(f"{path}, line {number}: not a JSON object with a `step`")
        records.append(record)
    return records, False


def once(records: Iterable[Record]) -> list[Record]:
    """Drops what a restart trained again: a record of an earlier step, or of the same kind and
    step, takes the place of all that were written from its step on."""
    kept: list[Record] = []
    newest: dict[str, int] = {}  # the last step of each kind
    for record in records:
        step, kind = record["step"], _kind(record)
        if (kept and step < kept[-1]["step"]) or step <= newest.get(kind, -1):
            while kept and kept[-1]["step"] >= step:
                kept.pop()
            newest = {k: s for k, s in newest.items() if s < step}
        kept.append(record)
        newest[kind] = step
    return kept


def _kind(record: Record) -> str:
    """What the record is of: `train`, `eval` or `inner`."""
    return next((name.partition("/")[0] for name in record if name != "step"), "")


def describe(folder: pathlib.Path) -> dict[str, Any]:
    """What the latest checkpoint of a run says of its model, as fields of `Run`; nothing where
    there is none yet."""
    try:
        checkpoint = find_checkpoint(folder)
    except UserError:
        return {}
    config = (ocp.metadata(checkpoint).custom_metadata or {}).get("config", {})
    model, data = config.get("model", {}), config.get("data", {})
    found: dict[str, Any] = {"model": model.get("memory")}
    if found["model"] and model.get("hybrid"):
        found["model"] += " and attention"
    if "window" in data and "batch_size" in data:
        found["tokens_per_step"] = data["window"] * data["batch_size"]
    # Of the arrays on disk, not of a model built anew: it may be one that an experiment registers.
    arrays = ocp.checkpointables_metadata(checkpoint).metadata["state"]["params"]
    found["parameters"] = sum(math.prod(x.shape) for x in _leaves(arrays) if x)
    return found


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for branch in tree.values() for leaf in _leaves(branch)]
    return [tree]
