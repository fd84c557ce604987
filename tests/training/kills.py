"""Where a run is killed: called in its process, before it begins."""

import os
import signal
import threading
import time

from miras_jax.training import checkpoint, metrics, reading

# What is counted in each phase.
PHASES = {
    "save": (checkpoint, "save"),
    "read": (reading.Reader, "read"),
    "step": (metrics.Monitor, "push"),
    "start": None,
}


def kill(phase: str, count: int, delay: float) -> None:
    """Ends this process by SIGKILL, `delay` seconds after `phase` begins the `count`-th time."""

    def end() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    begin = threading.Thread(target=end, daemon=True).start
    if phase == "start":
        begin()
        return
    where, name = PHASES[phase]
    original, calls = getattr(where, name), 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count:
            begin()
        return original(*arguments, **options)

    setattr(where, name, counted)
