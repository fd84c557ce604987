"""What a fine-tuning run is when nothing else is asked for: made from its checkpoint and its data.

The model, the window and the batch are the checkpoint's. The data become token sets of its
vocabulary in the run's folder, JSON lines of prompts and completions such as are learned in their
completions alone. Rates and lengths follow from what is trained and from how much data there are.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from miras_jax.data import count_rows, load_text, tokenize
from miras_jax.data.compression import decompressed
from miras_jax.data.plan import find_sources
from miras_jax.data.progress import TokenizeProgress
from miras_jax.data.shards import is_token_set
from miras_jax.nn import ModelConfig
from miras_jax.training import DataConfig, OptimizerConfig, StartConfig, TrainConfig, UserError
from miras_jax.training.source import Source

# A full run begins at a tenth of the checkpoint's peak; low-rank matrices take about ten times the
# learning rate of that (Schulman et al., "LoRA Without Regret", 2025).
FULL_RATE = 0.1
PASSES, MOST_STEPS = 3, 1000
WARMUP = 1 / 20
LOOKS = 5
"""Evaluations and checkpoints of a run."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(TrainConfig):
    """A training run that begins with a checkpoint, and how its data are read."""

    prompt_field: str = "prompt"
    """Name of the prompt in JSON lines that have prompts and completions."""
    completion_field: str = "completion"
    """Name of the completion there; only completions are learned."""

    def run(self) -> TrainConfig:
        """What the training loop is told."""
        names = [field.name for field in dataclasses.fields(TrainConfig)]
        return TrainConfig(**{name: getattr(self, name) for name in names})


def defaults(checkpoint: str, source: Source) -> FinetuneConfig:
    """The run before anything is known of its data.

    Raises:
      UserError: this version cannot build the checkpoint's model.
    """
    try:
        model = ModelConfig(**source.model)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{checkpoint} is of a model that this version cannot build: {error} If an experiment"
            " registers it, name its file with --experiment."
        ) from error
    data, optimizer = (
        _fields(DataConfig, source, "data"),
        _fields(OptimizerConfig, source, "optimizer"),
    )
    optimizer["learning_rate"] = FULL_RATE * OptimizerConfig(**optimizer).learning_rate
    kept = ("window", "batch_size")
    return FinetuneConfig(
        model=model,
        data=DataConfig(**{name: data[name] for name in kept if name in data}),
        optimizer=OptimizerConfig(**optimizer),
        start=StartConfig(checkpoint=checkpoint),
        directory=f"{_run_folder(checkpoint, source)}-finetuned",
    )


def _fields(kind: type, source: Source, name: str) -> dict[str, Any]:
    """What the checkpoint's run was told, of the fields that there are still."""
    known = {field.name for field in dataclasses.fields(kind)}
    return {key: x for key, x in source.config.get(name, {}).items() if key in known}


def _run_folder(checkpoint: str, source: Source) -> str:
    """The folder of the run, or of the export, as it was named."""
    path = pathlib.Path(checkpoint)
    named_one = not source.is_export and path.absolute() == source.folder
    return os.path.normpath(path.parent.parent if named_one else path)


def for_lora(config: FinetuneConfig) -> FinetuneConfig:
    """The learning rate of low-rank matrices."""
    rate = config.optimizer.learning_rate / FULL_RATE
    return dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, learning_rate=rate)
    )


def for_data(config: FinetuneConfig) -> FinetuneConfig:
    """As many steps as read the data three times, at most a thousand.

    Raises:
      UserError: the data cannot be read.
    """
    data = config.data
    try:
        parts = load_text(data.source, data.validation).parts
    except (ValueError, OSError) as error:
        raise UserError(f"--data {data.source!r}: {error}") from error
    rows = sum(count_rows(tokens, data.window) for tokens, _ in parts)
    steps = min(max(math.ceil(PASSES * rows / data.batch_size), 1), MOST_STEPS)
    return dataclasses.replace(config, steps=steps)


def for_steps(config: FinetuneConfig) -> FinetuneConfig:
    """Warm-up, evaluations and checkpoints of a run of that many steps."""
    every = max(config.steps // LOOKS, 1)
    warmup = math.ceil(config.steps * WARMUP)
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup),
        evaluation=dataclasses.replace(config.evaluation, every=every),
        checkpoint=dataclasses.replace(config.checkpoint, every=every),
    )


def tokenized(config: FinetuneConfig, source: Source) -> DataConfig:
    """The data as token sets of the checkpoint's vocabulary, made where they are not yet.

    A set that is there already is compared with its checksums and with its sources.

    Raises:
      DataError: something cannot be read, or has changed since.
      UserError: the checkpoint has lost its tokenizer.
    """
    sets = _TokenSets(config, source)
    data = config.data
    entries = [data.source] if isinstance(data.source, str) else [*data.source]
    held_out = [data.validation] if isinstance(data.validation, str) else data.validation
    found = tuple(sets.of_source(entry) for entry in entries)
    validation = held_out and tuple(sets.of_validation(entry) for entry in held_out)
    return dataclasses.replace(
        data,
        source=found[0] if isinstance(data.source, str) else found,
        validation=validation[0] if isinstance(data.validation, str) else validation,
    )


class _TokenSets:
    """Makes token sets in the folder of a run."""

    def __init__(self, config: FinetuneConfig, source: Source):
        self._folder = pathlib.Path(config.directory, "tokens")
        self._fields = config.prompt_field, config.completion_field
        vocabulary = source.vocabulary().describe()
        self._options: Mapping[str, Any] = {}
        if vocabulary["file"]:
            file = source.files / vocabulary["file"]
            self._options = {"tokenizer": str(file), "separator": vocabulary["separator"]}
        self._made: dict[str, str] = {}

    def of_source(self, entry: str) -> str:
        """PATH or PATH=WEIGHT."""
        path, equals, weight = entry.rpartition("=")
        if not equals or os.path.exists(entry):
            return self._make(entry)
        return f"{self._make(path)}={weight}"

    def of_validation(self, entry: str) -> str:
        """PATH or NAME=PATH."""
        name, equals, path = entry.partition("=")
        if not equals or os.path.exists(entry):
            return self._make(entry)
        return f"{name}={self._make(path)}"

    def _make(self, path: str) -> str:
        if path == "stdlib" or is_token_set(path):
            return path
        if path not in self._made:
            name = os.path.basename(path.rstrip("/")).partition(".")[0].strip("*?[]") or "text"
            out = str(self._folder / f"{len(self._made)}-{name}")
            with TokenizeProgress() as progress:
                manifest = tokenize(
                    [path],
                    out,
                    field=self._field(path),
                    watcher=progress,
                    wait=True,
                    **self._options,
                )
            print(
                f"{out}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens"
                f" of {path}"
            )
            self._made[path] = out
        return self._made[path]

    def _field(self, path: str) -> str | tuple[str, str]:
        """What documents are called there: prompts with completions if the first object of JSON
        lines has both."""
        for found in find_sources([path]):
            if found.format == "jsonl":
                with decompressed(found.path) as file:
                    line = next((line for line in file if line.strip()), b"")
                try:
                    value = json.loads(line)
                except ValueError:  # said with its number where it is read
                    continue
                both = isinstance(value, dict) and {*self._fields} <= value.keys()
                return self._fields if both else "text"
        return "text"
