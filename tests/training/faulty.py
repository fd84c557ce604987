"""Faults of the world round a run: called in its process, before it begins."""

import os
import resource
import signal
import time

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
