"""Ctrl-C and SIGTERM: the first is noted, so that the run can save; the next one is obeyed."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


class Signals:
    """The first signal that asked the run to stop, or None."""

    received: int | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[Signals]:
    """Notes the first SIGINT or SIGTERM; once it is noted, the next one ends the process.

    Python notes a signal when it runs again: while jax compiles, that takes until it is done.

    Signals reach the main thread only; in another one this does nothing.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(signum, frame):
        signals.received = signum
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, b"\nstopping after the running step; once more ends at once, without saving\n")

    previous = {}
    for each in (signal.SIGINT, signal.SIGTERM):
        previous[each] = signal.signal(each, note)
    try:
        yield signals
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
