"""Batches with a limit on the wait: a source that stalls ends the run instead of hanging it.

A thread reads, one batch at a time and only when asked: while it waits the loop can give up. The
place in the data is noted after every batch, so that it can be saved while a read is under way.
"""

import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from miras_jax.training.errors import InputError

LOOK_UP = 1.0  # seconds between two looks at whether the run was asked to stop


class Reader:
    """Reads from an iterator of batches, which is this object's alone from now on.

    Args:
      batches: has `__next__` and `get_state`, as the iterators of Grain.
      timeout: seconds that a batch may take; None and 0 wait for ever.
      source: what is read, for the messages.
      stopping: tells whether the run was asked to stop. Then a batch is not waited for any longer.
    """

    def __init__(
        self,
        batches: Iterator[dict[str, np.ndarray]],
        timeout: float | None,
        source: Any,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self._batches, self._timeout, self._source = batches, timeout or math.inf, source
        self._stopping = stopping
        self._place = batches.get_state()
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._read: queue.SimpleQueue[tuple[Any, Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="batches", daemon=True).start()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._asked.put(False)

    def read(self, step: int) -> dict[str, np.ndarray]:
        """Returns the batch of `step`.

        Raises:
          InputError: it did not come in time, or could not be read; then the cause is chained.
        """
        self._asked.put(True)
        batch, place, error = self._answer(step)
        if error is not None:
            raise InputError(
                f"step {step}: the batch cannot be read from data.source {self._source!r}:"
                f" {type(error).__name__}: {error}{_where(error)}"
            ) from error
        self._place = place
        return batch

    def _answer(self, step: int) -> tuple[Any, Any, BaseException | None]:
        """Waits for what the thread read; looks up every second."""
        began, stopping = time.monotonic(), False
        while True:
            left = self._timeout - (time.monotonic() - began)
            try:
                return self._read.get(timeout=min(max(left, 0.0), LOOK_UP))
            except queue.Empty:
                # The batch has a second left to come after a signal: it may come with it.
                if left <= LOOK_UP or stopping:
                    limit = "" if stopping else f" within data.timeout {self._timeout:g} s"
                    raise InputError(
                        f"step {step}: no batch came from data.source {self._source!r}{limit}",
                        stuck=True,
                    ) from None
                stopping = self._stopping()

    def get_state(self) -> Any:
        """The place in the data after the last batch that `read` returned."""
        return self._place

    def _serve(self) -> None:
        while self._asked.get():
            try:
                batch = next(self._batches)
                self._read.put((batch, self._batches.get_state(), None))
            except BaseException as error:  # the loop raises it
                self._read.put((None, None, error))


def _where(error: BaseException) -> str:
    """Returns " (FILE, line N)", where the error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
