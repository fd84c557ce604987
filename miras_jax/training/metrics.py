"""What a run says about itself: JSON lines for programs, a progress bar or lines for people."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from miras_jax.devices import PEAK_FLOPS
from miras_jax.training.errors import DivergedError, SaveError, reason
from miras_jax.training.integrity import last_good
from miras_jax.training.ledger import Ledger
from miras_jax.training.trackers import Tracker

Record = dict[str, int | float | str | list[float | None]]


def read_records(path: pathlib.Path) -> list[Record]:
    """Reads a metrics file, without a last line that was cut off by a crash.

    Returns an empty list where there is no file.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class MetricsFile:
    """Appends one JSON object per line and flushes it; every one has `step`.

    Records after `step` are dropped on opening, and where it is 0 those of step 0 too: the run
    continues from there and will write them again. All fields but `throughput/*` then equal those
    of a run that was never interrupted.

    Attributes:
      last: the last record of training that was kept; empty if there is none.
    """

    def __init__(self, path: pathlib.Path, step: int):
        kept = [record for record in read_records(path) if step and record["step"] <= step]
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        with self._failing():
            fresh.write_text("".join(json.dumps(record) + "\n" for record in kept))
            os.replace(
                fresh, path
            )  # a crash here leaves the old file or the new one, never half of one
            self._file = path.open("a")
        training = [record for record in kept if "train/loss" in record]
        self.last: Record = training[-1] if training else {}

    def write(self, record: Record) -> None:
        """Appends a record; NaN and infinities are refused with ValueError.

        Raises:
          SaveError: it cannot be written. Half of it may be, which the next opening drops.
        """
        line = json.dumps(record, allow_nan=False) + "\n"
        with self._failing():
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # what could not be written has been said
            self._file.close()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SaveError(
                f"{self._path} cannot be written: {reason(error)};"
                f" last good checkpoint: {last_good(self._path.parent)}"
            ) from error


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
      devices: devices that share the work, for the utilization.
      trackers: get every record too; `step` and whatever else the file has. They are closed here.
      ledger: what was read before `start`; goes on here, up to the last step that was looked at.
      max_skipped: how many steps in a row may have figures that are not finite: their update was
        left out. With 0 the first one ends the run.
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
        devices: int = 1,
        trackers: Iterable[Tracker] = (),
        ledger: Ledger | None = None,
        max_skipped: int = 0,
    ):
        self._file = MetricsFile(path, start) if jax.process_index() == 0 else None
        self._ledger, self._max_skipped = ledger or Ledger(), max_skipped
        self._steps, self._every, self._tokens, self._flops = steps, every, tokens, flops_per_token
        self._pending: tuple[int, Mapping[str, jax.Array], np.ndarray] | None = None
        # None until the first step of this process is over: it compiles.
        self._since: float | None = None
        self._counted = 0
        # Of the steps since the last record, in seconds: from one step's end to the next one's, and
        # how long the host waited for batches.
        self._looked: float | None = None
        self._times: list[float] = []
        self._waits: list[float] = []
        before = self._file.last.get("throughput/elapsed_seconds", 0.0) if self._file else 0.0
        self._began = time.perf_counter() - before
        self._peak = devices * PEAK_FLOPS.get(jax.devices()[0].device_kind, 0.0)
        self._trackers = tuple(trackers)
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
        for tracker in self._trackers:
            tracker.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Times what is done in it as waiting for the next batch."""
        began = time.perf_counter()
        yield
        self._waits.append(time.perf_counter() - began)

    def push(self, step: int, metrics: Mapping[str, jax.Array], index: np.ndarray) -> None:
        """Hands in the metrics of the step just dispatched, and looks at the step before.

        `index` int64 [rows] numbers the windows of the batch, of all processes.
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
        """Leaves the time since the last step out of the throughput and of the time of a step."""
        self._since = self._looked = time.perf_counter()
        self._counted = 0

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
            self._keep({"step": step, **lists})

    def say(self, line: str) -> None:
        """Prints a line above the progress bar, on the first process."""
        if self._file is not None:
            self._console.print(line, markup=False)

    def _look(self, step: int, metrics: Mapping[str, jax.Array], index: np.ndarray) -> None:
        due = step % self._every == 0 or step in (1, self._steps)
        # Norms of groups wait on the device: only records want them.
        wanted = {n: x for n, x in metrics.items() if due or not in_group(n)}
        values = {name: float(value) for name, value in jax.device_get(wanted).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if self._ledger.count(skipped=bool(bad)) > self._max_skipped:
            figures = ", ".join(f"{n} {x:.6g}" for n, x in values.items() if not in_group(n))
            before = f", after {self._max_skipped} batches skipped in a row" * bool(
                self._max_skipped
            )
            raise DivergedError(
                f"step {step}: {bad[0]} is not finite ({figures}){before};"
                f" windows of the batch: {_listed(index)}"
            )
        data = {"data/tokens": step * self._tokens, **self._ledger.enter(index)}
        if self._max_skipped:
            data["train/skipped"] = self._ledger.skipped
        now, self._counted = time.perf_counter(), self._counted + 1
        if self._looked is not None:
            self._times.append(now - self._looked)
        self._looked = now
        if self._since is None:
            self.pause()
        if bad:
            self._skipped(step, f"{bad[0]} is {values[bad[0]]}", index, data)
        elif due:
            if self._counted and now > self._since:
                rate = self._counted * self._tokens / (now - self._since)
                values |= {
                    "throughput/tokens_per_second": rate,
                    "throughput/flops_per_second": rate * self._flops,
                }
                if self._peak:
                    values["throughput/mfu"] = rate * self._flops / self._peak
            values |= self._timing(now) | memory_in_use()
            self._write({"step": step, **values, **data})
            self.pause()
        self._progress.update(self._task, completed=step)

    def _skipped(self, step: int, why: str, windows: np.ndarray, data: Record) -> None:
        """Writes and says which batch was left out, and why."""
        if self._file is not None:
            named = {"skipped/reason": why, "skipped/windows": windows.tolist()}
            self._file.write({"step": step, **named, **data})
        row = self._ledger.skipped_in_a_row
        self.say(
            f"step {step}: {why}: batch skipped, {row} in a row of {self._max_skipped} at most;"
            f" its windows: {_listed(windows)}"
        )

    def _timing(self, now: float) -> Record:
        """The times of the steps since the last record, which it forgets."""
        found: Record = {"throughput/elapsed_seconds": now - self._began}
        if self._times:
            percentiles = np.percentile(self._times, (50, 90, 99)).tolist()
            for percentile, seconds in zip((50, 90, 99), percentiles, strict=True):
                found[f"throughput/step_seconds_p{percentile}"] = seconds
            if self._waits:
                found["throughput/input_wait_seconds"] = math.fsum(self._waits) / len(self._waits)
        self._times, self._waits = [], []
        return found

    def _keep(self, record: Record) -> None:
        """Hands a record to the file and the trackers."""
        self._file.write(record)
        for tracker in self._trackers:
            tracker.write(record)

    def _write(self, record: Record) -> None:
        if self._file is None:
            return
        self._keep(record)
        if self._interactive and "train/loss" in record:
            self._progress.update(self._task, figures=_figures(record, SHOWN_IN_BAR))
        else:
            step = f"step {record['step']:>{len(str(self._steps))}}/{self._steps}"
            self.say(f"{step}  {_figures(record, SHOWN)}")


def _listed(windows: np.ndarray) -> str:
    """The first 64 windows of a batch, and how many there are."""
    more = f", ... {len(windows)} in all" if len(windows) > 64 else ""
    return ", ".join(map(str, windows[:64])) + more


def in_group(name: str) -> bool:
    """Whether a figure is that of a group of parameters: `train/grad_norm/GROUP`."""
    return name.count("/") > 1


def memory_in_use() -> Record:
    """Bytes that this process holds on its fullest device, now and at most, and on the host; only
    what the platform tells."""
    found: Record = {}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    names = {"device_bytes": "bytes_in_use", "device_peak_bytes": "peak_bytes_in_use"}
    for name, key in names.items():
        if any(key in each for each in stats):
            found[f"throughput/{name}"] = max(each.get(key, 0) for each in stats)
    with contextlib.suppress(OSError):  # Linux alone has it
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        found["throughput/host_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
    return found


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
    "eval/accuracy": ("accuracy", ".3f"),
    "eval/bits_per_byte": ("bits per byte", ".3f"),
    "eval/order1_bits_per_byte": ("order-1 entropy", ".3f"),
    "eval/order0_bits_per_byte": ("order-0 entropy", ".3f"),
}
