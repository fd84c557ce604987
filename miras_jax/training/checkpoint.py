"""Saving and restoring: the state, the place in the data and the configuration, together.

A run's folder holds `checkpoints/<step>/`. A checkpoint is written in the background and appears
there by one rename when it is complete, so that a process that dies while writing leaves the one
before as the latest. A manifest of checksums tells later whether it is still what was written.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import operator
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from miras_jax.data import DataError, Folder, Tokenizer, TrainingText, saved_vocabulary
from miras_jax.nn import LanguageModel, ModelConfig
from miras_jax.nn.lora import LoraConfig
from miras_jax.nn.names import from_tensors, tensors
from miras_jax.training import agreement
from miras_jax.training.config import TrainConfig
from miras_jax.training.errors import SaveError, UserError, reason
from miras_jax.training.integrity import (
    find_sound,
    is_checkpoint,
    last_good,
    seal,
    sealed,
    set_aside,
    steps_in,
)
from miras_jax.training.state import State
from miras_jax.training.trainable import make_model

# A checkpoint that differs in one of these belongs to another run. The optimizer, the mesh and the
# number of steps may change half way, and the same text may be found at another place.
IDENTITY = ("model", "data", "seed", "corpus", "start", "trainable")
HARMLESS = ("model.remat", "data.source", "data.validation", "data.timeout", "corpus.name")

HALF_WRITTEN = (
    "*.orbax-checkpoint-tmp*"  # as orbax names a checkpoint's folder until it is complete
)


def describe(config: TrainConfig, corpus: TrainingText) -> dict[str, Any]:
    """Returns what is written beside every checkpoint, as plain JSON values."""
    text = {"name": corpus.name, "version": corpus.version, "sha256": corpus.sha256}
    found = {"config": dataclasses.asdict(config), "corpus": text}
    found |= {"vocabulary": corpus.vocabulary, "packed": corpus.packed}
    return json.loads(json.dumps(found))


def settings(config: TrainConfig) -> dict[str, Any]:
    """The configuration by path, `data.window`, without what is each process's own."""
    found = dataclasses.asdict(config)
    del found["processes"]
    return _flat({"config": found})


@contextlib.contextmanager
def open_checkpoints(config: TrainConfig) -> Iterator[ocp.training.Checkpointer]:
    """Opens the checkpoints of the run, making their folder, and keeps other processes out.

    Damaged checkpoints, newer than the newest sound one, are set aside before. Leaving it waits for
    what is being written.

    Raises:
      UserError: if the folder cannot be made, another run is training in it, it is not the same for
        all processes of this one, or all checkpoints are damaged.
      SaveError: the last checkpoint could not be written.
    """
    root = pathlib.Path(config.directory).absolute() / "checkpoints"
    decide, preserve = ocp.training.save_decision_policies, ocp.training.preservation_policies
    with contextlib.ExitStack() as stack:
        with agreement.together():
            try:
                root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"directory {config.directory!r} cannot be made: {error}"
                ) from error
            if jax.process_index() == 0:  # for all processes of the run; the others list it after
                stack.enter_context(_locked(config.directory))
                set_aside(root)
        agreement.check_shared(root.parent)
        context = ocp.Context()
        # Called on the first process when all is written, before the folder gets its name.
        context.asynchronous.post_finalization_callback = lambda: [
            seal(half) for half in root.glob(HALF_WRITTEN)
        ]
        # It stays: a thread may log after the run has ended with the error.
        logging.getLogger("absl").addFilter(_raised_later)
        checkpoints = ocp.training.Checkpointer(
            root,
            context=context,
            save_decision_policy=decide.FixedIntervalPolicy(config.checkpoint.every),
            preservation_policy=preserve.LatestN(config.checkpoint.keep),
            cleanup_tmp_directories=True,  # what a killed process left half written
        )
        try:
            yield checkpoints
        except BaseException:
            # Why the run ends is said already.
            with contextlib.suppress(SaveError), _failed_saves(root):
                checkpoints.close()
            raise
        with _failed_saves(root):
            checkpoints.close()


def _raised_later(record: logging.LogRecord) -> bool:
    """Drops the tracebacks that every thread of orbax logs of an error: it is raised as well."""
    return not (record.exc_info and "orbax" in record.pathname)


def _remove_half_written(root: pathlib.Path) -> None:
    """Gives back the room that it takes; what is still written meanwhile goes at the next start."""
    for _ in range(10):
        for half in root.glob(HALF_WRITTEN):
            shutil.rmtree(half, ignore_errors=True)
        if not any(root.glob(HALF_WRITTEN)):
            return
        time.sleep(0.1)


@contextlib.contextmanager
def _failed_saves(root: pathlib.Path) -> Iterator[None]:
    """Says what could not be written in `root` and why, and removes what is half written."""
    try:
        yield
    except Exception as error:  # of whatever kind the library has: a full disk is a ValueError
        if jax.process_index() == 0:
            _remove_half_written(root)
        raise SaveError(
            f"no checkpoint can be written in {root}: {reason(error)};"
            f" last good checkpoint: {last_good(root.parent)}"
        ) from error


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Locks the run; the kernel drops the lock when the process ends, even if it is killed."""
    with open(pathlib.Path(directory, "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {directory}") from None
        yield


def check_same_run(
    checkpoints: ocp.training.Checkpointer, config: TrainConfig, corpus: TrainingText
) -> None:
    """Refuses to continue a run of another model, other data or another seed.

    Raises:
      UserError: names the first field that differs, with both values.
    """
    latest = checkpoints.latest
    if latest is None:
        return
    saved, asked = _flat(ocp.metadata(latest.path).custom_metadata), _flat(describe(config, corpus))
    # What a run was not asked when it began has its default.
    saved = _flat(describe(TrainConfig(), corpus)) | saved
    for name in [*asked, *sorted(saved.keys() - asked.keys())]:
        if (
            name.startswith(IDENTITY)
            and name not in HARMLESS
            and saved.get(name) != asked.get(name)
        ):
            raise UserError(
                f"{name} is {asked.get(name)!r}, but the run in {config.directory} has"
                f" {saved.get(name)!r}; ask for the same or choose another --directory"
            )


def save(
    checkpoints: ocp.training.Checkpointer,
    state: State,
    data: Any,
    metadata: dict[str, Any],
    step: int,
) -> None:
    """Begins to write a checkpoint; the arrays are copied first, so they may be donated after.

    The place of the iterator `data` is one small dict, the same on every process: it goes into the
    metadata, where any number of processes can read it.

    Raises:
      SaveError: this one cannot be begun, or the one before could not be written.
    """
    metadata = sealed({**metadata, "position": data.get_state()})
    with _failed_saves(checkpoints.directory):
        checkpoints.save_checkpointables_async(
            step, {"state": state}, force=True, custom_metadata=metadata
        )


def wait(checkpoints: ocp.training.Checkpointer) -> None:
    """Waits until what `save` began is written.

    Raises:
      SaveError: it could not be written.
    """
    with _failed_saves(checkpoints.directory):
        checkpoints.wait()


def restore(checkpoints: ocp.training.Checkpointer, abstract: State, data: Any) -> State:
    """Returns the latest state, laid out as `abstract` says, and moves `data` to its place."""
    data.set_state(saved_metadata(checkpoints)["position"])
    return checkpoints.load_checkpointables(checkpoints.latest, {"state": abstract})["state"]


def saved_metadata(checkpoints: ocp.training.Checkpointer) -> dict[str, Any]:
    """What was written beside the latest checkpoint, see `save`; empty where there is none."""
    return ocp.metadata(checkpoints.latest.path).custom_metadata if checkpoints.latest else {}


def model_shapes(described: Mapping[str, Any], where: pathlib.Path) -> LanguageModel:
    """The model of a description read from `where`, whose "model" has the fields of `ModelConfig`;
    shapes instead of arrays.

    Raises:
      UserError: this version cannot build it.
    """
    try:
        config = ModelConfig(**described["model"])
        lora = lora_of(described)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} does not describe a model that this version can build: {error}"
            " If an experiment registers it, run that file first, or name it with --experiment."
        ) from error
    return jax.eval_shape(lambda key: make_model(config, lora, key), jax.random.key(0))


def lora_of(described: Mapping[str, Any]) -> LoraConfig:
    """The LoRA of a description; none if it says nothing."""
    return LoraConfig(**described.get("trainable", {}).get("lora", {}))


def load_model(path: str | pathlib.Path) -> tuple[LanguageModel, dict[str, Any]]:
    """Reads a model alone, without the optimizer, onto the first device.

    Args:
      path: the folder of a run (its latest checkpoint is taken; of damaged ones the one before, and
        stderr says so) or of one checkpoint.

    Returns:
      The model and the metadata that `describe` made.

    Raises:
      UserError: if there is no checkpoint, it is damaged, or not one of this library.
    """
    return read_model(find_sound_checkpoint(pathlib.Path(path)))


def read_model(checkpoint: pathlib.Path) -> tuple[LanguageModel, dict[str, Any]]:
    """As `load_model`, of the folder of one checkpoint that is known to be sound."""
    metadata = ocp.metadata(checkpoint).custom_metadata or {}
    shapes = model_shapes(metadata.get("config", {}), checkpoint)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    return from_tensors(shapes, load_tensors(checkpoint, tensors(wanted))), metadata


def load_tensors(
    checkpoint: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads parameters by name, see `nn.names`, laid out as they are asked for."""
    # Orbax loads a part of a tree when it is asked for as nested dicts, as it lies on disk.
    paths = {name: (*name.split("."), "value") for name in wanted}
    abstract: dict[str, Any] = {}
    for name, (*outer, last) in paths.items():
        inner = functools.reduce(lambda node, key: node.setdefault(key, {}), outer, abstract)
        inner[last] = wanted[name]
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = ocp.load_checkpointables(checkpoint, {"state": {"params": abstract}})
    params = loaded["state"]["params"]
    return {name: functools.reduce(operator.getitem, path, params) for name, path in paths.items()}


def load_tokenizer(path: str | pathlib.Path, metadata: dict[str, Any]) -> Tokenizer:
    """Returns the tokenizer of a model that `load_model` read, bytes if nothing says otherwise.

    Raises:
      UserError: its file is not in the run's folder, or its library is not installed.
    """
    run = find_checkpoint(pathlib.Path(path)).parent.parent
    try:
        vocabulary = metadata.get("vocabulary", {"kind": "bytes"})
        return saved_vocabulary(vocabulary, Folder(str(run))).tokenizer
    except DataError as error:
        raise UserError(str(error)) from error


def find_checkpoint(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder of one checkpoint: `path` itself, or the latest of the run in `path`.

    Raises:
      UserError: if there is none.
    """
    return next(filter(is_checkpoint, _candidates(path)))


def find_sound_checkpoint(path: pathlib.Path) -> pathlib.Path:
    """As `find_checkpoint`, but held against its manifest; of a run, the newest that is sound.

    Raises:
      UserError: if there is none.
    """
    return find_sound(path, _candidates(path))


def _candidates(path: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints at `path`, from the newest on, of which one at least looks like one."""
    path = path.absolute()
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: there is no such folder")
    if is_checkpoint(path):
        return [path]
    for root in (path / "checkpoints", path):
        if any(map(is_checkpoint, steps := steps_in(root))):
            return steps
    raise UserError(f"no checkpoint in {path}: it is neither a run nor a checkpoint")


def _flat(metadata: dict[str, Any]) -> dict[str, Any]:
    """Turns {"config": {"a": {"b": 1}}, "corpus": {"c": 2}} into {"a.b": 1, "corpus.c": 2}."""
    paths = jax.tree_util.tree_leaves_with_path(metadata, is_leaf=lambda x: not isinstance(x, dict))
    return {
        ".".join(str(key.key) for key in path).removeprefix("config."): value
        for path, value in paths
    }
