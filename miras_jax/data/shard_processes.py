"""Shards written side by side, in processes that end with the one that started them."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from miras_jax.data.errors import DataError
from miras_jax.data.records import Piece
from miras_jax.data.shard_writer import Job, write_shard


def write_shards(
    job: Job, pieces: list[list[Piece]], left: list[int], workers: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields number and record of the shards `left` as they are written; in this process where one
    is enough, else in others.
    """
    workers = min(workers, len(left))
    if workers <= 1:
        for number in left:
            yield number, write_shard(job, number, pieces[number])
        return
    paths = [job.out, *(piece.path for number in left for piece in pieces[number])]
    if inside := [path for path in paths if path.startswith("memory:")]:
        raise DataError(f"{inside[0]} is in the memory of this process alone: ask for 1 worker")
    context = multiprocessing.get_context("spawn")
    # Nothing is ever sent: its end is what the workers wait for, and it comes also by kill -9.
    ended, alive = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_end_with_parent, initargs=(ended,)
    )
    try:
        # Ctrl-C reaches all processes; those that are started here have it blocked from their first
        # moment, and end with this one.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        waiting = {pool.submit(write_shard, job, number, pieces[number]): number for number in left}
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for future in concurrent.futures.as_completed(waiting):
            yield waiting[future], future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise DataError(
            "a process ended early, perhaps for want of memory: the same command goes on from"
            f" here; try fewer workers than {workers}, or smaller shards"
        ) from None
    except BaseException:
        alive.close()  # what is half written is of no use
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        alive.close()
        ended.close()


def _end_with_parent(ended: Connection) -> None:
    """Ends this process as soon as the one that started it has ended or closes its side."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism

    def watch() -> None:
        wait([ended])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
