"""Trackers: services that get the records of `metrics.jsonl` too, each from a package of its own.

A package is imported only when its tracker is asked for; the file of the run stays the record.
"""

import dataclasses
import importlib.util
import pathlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from miras_jax.training.config import TrainConfig
from miras_jax.training.errors import UserError

# By name, which is also that of the extra: the package to import.
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Tracker(Protocol):
    """What a run tells its records to."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes one record: `step` and figures, some of them lists or text."""

    def close(self) -> None:
        """Sends what is left."""


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the numbers of a record but `step`; of a list `NAME/0`, `NAME/1`, ... without the
    nulls. Text is left out."""
    for name, value in record.items():
        if isinstance(value, list):
            yield from ((f"{name}/{i}", x) for i, x in enumerate(value) if x is not None)
        elif name != "step" and not isinstance(value, str):
            yield name, value


class TensorBoard:
    """Writes event files to `DIRECTORY/tensorboard`.

    Steps after `start` that an earlier process wrote are no longer shown: they will come again.
    """

    def __init__(self, config: TrainConfig, start: int):
        import tensorboardX

        folder = pathlib.Path(config.directory, "tensorboard")
        # Files are named by the second: without the suffix a quick restart would write over one.
        self._writer = tensorboardX.SummaryWriter(
            str(folder), purge_step=start + 1, filename_suffix=f".{start}", flush_secs=1
        )

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Logs to a run of Weights & Biases; its own variables name project and mode (`WANDB_PROJECT`,
    `WANDB_MODE=offline`).

    The run's id is kept in `DIRECTORY/wandb_id`, so that a restart continues it; the service
    ignores steps that it has already.
    """

    def __init__(self, config: TrainConfig, start: int):
        import wandb

        folder = pathlib.Path(config.directory)
        kept = folder / "wandb_id"
        if not kept.exists():
            kept.write_text(secrets.token_hex(8))
        self._run = wandb.init(
            id=kept.read_text().strip(),
            resume="allow",
            name=folder.name,
            dir=str(folder),
            config=dataclasses.asdict(config),
        )

    def write(self, record: Mapping[str, Any]) -> None:
        self._run.log(dict(scalars(record)), step=record["step"])

    def close(self) -> None:
        self._run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB}


def check_trackers(names: Iterable[str]) -> None:
    """Refuses to begin with a tracker that there is not.

    Raises:
      UserError: the name is unknown or said twice, or its package is missing.
    """
    names = tuple(names)
    for name in names:
        if name not in PACKAGES:
            known = ", ".join(PACKAGES)
            raise UserError(f"log.trackers: there is no tracker {name!r}; choose from {known}")
        if names.count(name) > 1:
            raise UserError(f"log.trackers names {name} twice; once is enough")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"log.trackers: {name} is not installed: pip install {PACKAGES[name]}")


def open_trackers(config: TrainConfig, start: int) -> tuple[Tracker, ...]:
    """Opens the trackers of `config.log.trackers`, which `check_trackers` has passed, for a run
    that goes on after step `start`.

    Raises:
      UserError: one of them cannot begin, as where W&B has no login.
    """
    opened: list[Tracker] = []
    for name in config.log.trackers:
        try:
            opened.append(TRACKERS[name](config, start))
        except Exception as error:  # of whatever kind the package has
            for tracker in opened:
                tracker.close()
            raise UserError(f"log.trackers: {name} cannot begin: {error}") from error
    return tuple(opened)
