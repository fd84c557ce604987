"""What a run says about itself: JSON lines for programs, a progress bar or lines for people."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from miras_jax.training.errors import DivergedError

Record = dict[str, int | float | str | list[float | None]]


def read_records(path: pathlib.Path) -> list[Record]:
    """Reads a metrics file, without a last line that was cut off by a crash.

    Returns an empty list where there is no file.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class MetricsFile:
    """Appends one JSON object per line and flushes it; every one has `step`.

    Records after `step` are dropped on opening: the run continues from there and will write them
    again. All fields but `throughput/*` then equal those of a run that was never interrupted.
    """

    def __init__(self, path: pathlib.Path, step: int):
        kept = [record for record in read_records(path) if record["step"] <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(
            fresh, path
        )  # a crash here leaves the old file or the new one, never half of one
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        """Appends a record; NaN and infinities are refused with ValueError."""
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class QuietConsole(Console):
    """A console that falls silent when nobody reads it any more, where rich ends the process."""

    def on_broken_pipe(self) -> None:
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


class Monitor:
    """Takes the metrics of every step, writes the records and stops a run that diverges.

    While step t runs on the device, the metrics of t - 1 are fetched: the host never waits for the
    running step.

    Args:
      path: the metrics file.
      start: the step to continue after.
      steps: the last step.
      every: steps per record.
      tokens: tokens per step.
      flops_per_token: FLOPs per token of a step, forward and backward.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        start: int,
        steps: int,
        every: int,
        tokens: int,
        flops_per_token: float,
    ):
        self._file = MetricsFile(path, start) if jax.process_index() == 0 else None
        self._steps, self._every, self._tokens, self._flops = steps, every, tokens, flops_per_token
        self._pending: tuple[int, Mapping[str, jax.Array], np.ndarray] | None = None
        # None until the first step of this process is over: it compiles.
        self._since: float | None = None
        self._counted = 0
        # Whether a person watches a terminal that can redraw a line: a progress bar, else lines.
        dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
        self._interactive = self._file is not None and sys.stdout.isatty() and not dumb
        self._console = QuietConsole(
            highlight=False, soft_wrap=True, force_terminal=self._interactive
        )
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
            disable=not self._interactive,
        )
        self._task = self._progress.add_task("", total=steps, completed=start, figures="compiling")

    def __enter__(self) -> "Monitor":
        self._progress.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.stop()
        if self._file is not None:
            self._file.close()

    def push(self, step: int, metrics: Mapping[str, jax.Array], index: np.ndarray) -> None:
        """Hands in the metrics of the step just dispatched, and looks at the step before.

        `index` int64 [rows] numbers the windows of the batch.
        """
        previous, self._pending = self._pending, (step, metrics, index)
        if previous is not None:
            self._look(*previous)

    def drain(self) -> None:
        """Waits for the running step and looks at it, before its state is saved or evaluated."""
        if self._pending is not None:
            self._look(*self._pending)
            self._pending = None

    def pause(self) -> None:
        """Leaves the time since the last step out of the throughput."""
        self._since, self._counted = time.perf_counter(), 0

    def evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes the figures of an evaluation after `step`."""
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if bad:
            raise DivergedError(f"step {step}: {bad[0]} is {figures[bad[0]]}")
        self._write({"step": step, **figures})

    def diagnosis(self, step: int, figures: Mapping[str, list[float]]) -> None:
        """Writes figures by layer of the inner loops after `step`, to the file alone; null stands
        for what is not finite."""
        if self._file is not None:
            lists = {
                name: [x if math.isfinite(x) else None for x in layers]
                for name, layers in figures.items()
            }
            self._file.write({"step": step, **lists})

    def say(self, line: str) -> None:
        """Prints a line above the progress bar, on the first process."""
        if self._file is not None:
            self._console.print(line, markup=False)

    def _look(self, step: int, metrics: Mapping[str, jax.Array], index: np.ndarray) -> None:
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            figures = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
            windows = ", ".join(map(str, index[:64])) + (
                f", ... {len(index)} in all" if len(index) > 64 else ""
            )
            raise DivergedError(
                f"step {step}: {bad[0]} is not finite ({figures}); windows of the batch: {windows}"
            )
        now, self._counted = time.perf_counter(), self._counted + 1
        if self._since is None:
            self.pause()
        if step % self._every == 0 or step in (1, self._steps):
            if self._counted and now > self._since:
                rate = self._counted * self._tokens / (now - self._since)
                values |= {
                    "throughput/tokens_per_second": rate,
                    "throughput/flops_per_second": rate * self._flops,
                }
            checksum = zlib.crc32(np.ascontiguousarray(index, np.int64).tobytes())
            self._write({"step": step, **values, "data/index_crc32": f"{checksum:08x}"})
            self.pause()
        self._progress.update(self._task, completed=step)

    def _write(self, record: Record) -> None:
        if self._file is None:
            return
        self._file.write(record)
        if self._interactive and "train/loss" in record:
            self._progress.update(self._task, figures=_figures(record, SHOWN_IN_BAR))
        else:
            step = f"step {record['step']:>{len(str(self._steps))}}/{self._steps}"
            self.say(f"{step}  {_figures(record, SHOWN)}")


def _figures(record: Record, names: Iterable[str]) -> str:
    """Writes the figures of a record for people."""
    shown = [(*SHOWN[name], record[name]) for name in names if name in record]
    for name, value in record.items():  # of held-out texts that have names
        if name.endswith("/bits_per_byte") and name.count("/") == 2:
            shown.append((name.split("/")[1], ".3f", value))
    return "  ".join(f"{label} {value:{form}}" for label, form, value in shown)


# In 80 columns there is room for two, beside the count and the bar.
SHOWN_IN_BAR = ("train/loss", "throughput/tokens_per_second")
SHOWN = {
    "train/loss": ("loss", ".4f"),
    "train/grad_norm": ("grad norm", ".3f"),
    "train/learning_rate": ("learning rate", ".2e"),
    "throughput/tokens_per_second": ("tokens/s", ",.0f"),
    "eval/loss": ("held-out loss", ".4f"),
    "eval/bits_per_byte": ("bits per byte", ".3f"),
    "eval/order1_bits_per_byte": ("order-1 entropy", ".3f"),
    "eval/order0_bits_per_byte": ("order-0 entropy", ".3f"),
}
