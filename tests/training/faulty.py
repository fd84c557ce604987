"""Faults of the world round a run: called in its process, before it begins."""

import atexit
import os
import resource
import signal
import time

import jax

from miras_jax.data import pipeline
from miras_jax.training import reading


def limit_files(size: int) -> None:
    """No file can grow beyond `size` bytes: `write` fails half way through, in the kernel."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def stall(reads: int) -> None:
    """The source hangs for ever once `reads` windows were read, as a dead network folder does."""
    original, done = pipeline._Windows.__getitem__, 0

    def read(self, index):
        nonlocal done
        done += 1
        while done > reads:
            time.sleep(1)
        return original(self, index)

    pipeline._Windows.__getitem__ = read


def stop_after(step: int) -> None:
    """SIGTERM comes while the batch of `step` is read."""
    original = reading.Reader.read

    def read(self, number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number)

    reading.Reader.read = read


def count_programs() -> None:
    """Says on stdout how many programs were compiled and kept, and how many were found on disk; the
    folder is that of the run."""
    jax.config.update("jax_compilation_cache_dir", None)
    found = {"misses": 0, "hits": 0}

    def note(event: str, **_) -> None:
        for name in found:
            found[name] += event == f"/jax/compilation_cache/cache_{name}"

    jax.monitoring.register_event_listener(note)
    atexit.register(lambda: print(found))
