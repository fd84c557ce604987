"""A window of steps under the profiler: what device and host do in them, for the tools that read
traces of XLA (TensorBoard, XProf, Perfetto)."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax


class ProfileWindow:
    """Records the steps `at` to `at + steps - 1` in `folder`; none of them if `at` is 0.

    Args:
      folder: where the trace goes, in a folder of its own by time and one file for each host.
      at: the first step.
      steps: how many.
      say: prints a line.
    """

    def __init__(self, folder: pathlib.Path, at: int, steps: int, say: Callable[[str], None]):
        self._folder, self._first, self._last, self._say = folder, at, at + steps - 1, say
        self._open = False

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._open:  # the run ends within the window
            self._close()

    def before(self, step: int, running: Any) -> None:
        """Begins the trace if `step` is the first one; `running` is what is being computed yet."""
        if step == self._first:
            jax.block_until_ready(running)
            jax.profiler.start_trace(self._folder)
            self._open = True

    def after(self, step: int, running: Any) -> bool:
        """Ends the trace if `step` was the last one, once that is computed; returns whether."""
        if not self._open or step < self._last:
            return False
        jax.block_until_ready(running)
        self._close()
        self._say(f"profile of steps {self._first} to {step}: {self._folder}")
        return True

    def _close(self) -> None:
        jax.profiler.stop_trace()
        self._open = False
