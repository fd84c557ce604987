"""How far a tokenization has come: a bar on a terminal, a line now and then elsewhere."""

import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from miras_jax.data.records import Corrupt

# Corrupt lines and records that are printed; the manifest has more.
SHOWN = 20
SECONDS_BETWEEN_LINES = 10.0


class TokenizeProgress:
    """The watcher that `miras tokenize` hands to `tokenize`."""

    def __init__(self) -> None:
        dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
        self._interactive = sys.stdout.isatty() and not dumb
        self._progress = Progress(
            DownloadColumn(binary_units=True),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(highlight=False, soft_wrap=True),
            expand=True,
            disable=not self._interactive,
        )
        self._task = self._progress.add_task("", total=None, figures="")
        self._total = self._done = self._tokens = self._problems = 0
        self._since = self._last = time.monotonic()

    def __enter__(self) -> "TokenizeProgress":
        self._progress.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.stop()

    def begin(self, total: int, done: int) -> None:
        """See `Watcher`."""
        self._total, self._done = total, done
        self._since = time.monotonic()
        self._progress.update(self._task, total=total, completed=done)
        if done:
            self._say(f"going on after {done:,} of {total:,} bytes")

    def advance(self, size: int, record: dict[str, Any]) -> None:
        """See `Watcher`."""
        self._done, self._tokens = self._done + size, self._tokens + record["tokens"]
        for problem in record["problems"]:
            self._problems += 1
            if self._problems <= SHOWN:
                self._say(f"corrupt, left out: {Corrupt(*problem)}", sys.stderr)
            elif self._problems == SHOWN + 1:
                self._say("corrupt: more of them, see the manifest", sys.stderr)
        now = time.monotonic()
        rate = self._tokens / max(now - self._since, 1e-3)
        figures = f"{rate:,.0f} tokens/s"
        self._progress.update(self._task, completed=self._done, figures=figures)
        if not self._interactive and now - self._last > SECONDS_BETWEEN_LINES:
            self._last = now
            self._say(f"{self._done:,} of {self._total:,} bytes, {figures}")

    def _say(self, line: str, file: Any = None) -> None:
        if self._interactive:
            self._progress.console.print(line, markup=False)
        else:
            print(line, file=file or sys.stdout, flush=True)
