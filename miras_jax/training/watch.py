"""Each process of a job watches the others: nobody waits for ever for one that has gone.

A collective operation waits for all processes, and a process that waits there cannot be told
anything. So a thread beside it writes a sign of life to the coordinator, reads those of the others,
and ends the process when one has failed or gives none any more.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from jax._src import distributed  # the key-value store of the coordinator has no public name

from miras_jax.training.errors import StoppedError

PREFIX = "miras/process/"
LOST = 75  # EX_TEMPFAIL of sysexits.h: the same command may well succeed
# How errors of jax begin that come of another process or the network; XLA's status codes.
OF_OTHERS = re.compile(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED)\b")
CONTINUE = "What was saved is whole; start all processes again with the same command to go on."
# jax's runtime ends a process whose coordinator is gone, and no Python code runs any more. A shell
# that is told so by the end of a pipe has the last word.
LAST_WORD = 'trap "" INT TERM HUP; read -r said || printf "%s\\n" "$1" >&2'

_watch: "Watch | None" = None


class Watch(threading.Thread):
    """The signs of life of this process and of the others, for as long as the context is open.

    Args:
      coordinator: its address, for messages.
      count, index: the processes, and this one.
      lost_after: seconds without a sign after which a process is lost.
    """

    def __init__(self, coordinator: str, count: int, index: int, lost_after: float):
        super().__init__(daemon=True, name="watch")
        self._client = distributed.global_state.client
        self._coordinator, self._count, self._index = coordinator, count, index
        self._lost_after, self._interval = lost_after, min(2.0, lost_after / 5)
        self._ended = threading.Event()
        self._speaking, self._telling = threading.Lock(), threading.Lock()
        self._me = f"process {index} of {count}"
        self._shell: subprocess.Popen | None = None

    def __enter__(self) -> "Watch":
        global _watch
        word = (
            f"miras: error: {self._me}: ended by JAX or from outside. If the lines above name"
            f" another process, or the coordinator (process 0, {self._coordinator}), that one went"
            f" first: see its log. {CONTINUE}"
        )
        with contextlib.suppress(OSError):  # no shell: no last word
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", LAST_WORD, "sh", word],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        self.start()
        _watch = self
        return self

    def __exit__(self, *exception) -> None:
        global _watch
        _watch = None
        self.end()
        self._said()

    def run(self) -> None:
        """Gives and looks for signs of life; the thread's own function."""
        seen: dict[int, tuple[str, float]] = {}
        beat = 0
        while not self._ended.wait(self._interval):
            beat += 1
            try:
                self._tell({"beat": beat}, unless_ended=True)
                signs = self._client.key_value_dir_get(PREFIX)
            except Exception as error:
                if not self._ended.is_set():
                    self._stop(f"the coordinator (process 0, {self._coordinator}) is gone: {error}")
                return
            now = time.monotonic()
            found = {int(key.rsplit("/", 1)[1]): sign for key, sign in signs}
            for index in range(self._count):
                sign = found.get(index, "{}")
                status = json.loads(sign)
                if "failed" in status and index != self._index:
                    self._stop(f"process {index} failed: {status['failed']}", status["code"])
                if "ended" in status or sign != seen.get(index, (None, 0))[0]:
                    seen[index] = (sign, now)
                elif now - seen[index][1] > self._lost_after:
                    self._stop(
                        f"process {index} has given no sign of life for {self._lost_after} s"
                        f" (processes.lost_after): it died, or cannot reach {self._coordinator}."
                        f" {CONTINUE}"
                    )

    def end(self) -> None:
        """Says that this process comes to its end as it should, once."""
        if not self._ended.is_set():
            self._ended.set()
            with contextlib.suppress(Exception):  # the coordinator has ended already
                self._tell({"ended": True})

    def fail(self, error: BaseException) -> None:
        """Ends the process for an error of its own, and with it the others. Does not return."""
        code = getattr(error, "exit_code", 2 if isinstance(error, OSError) else None)
        line = " ".join(str(error).split())
        of_others = OF_OTHERS.match(line) is not None
        if of_others:  # most likely the death of another one, which the thread will name
            self._say(f"{line[:300]}; looking for the process that ended")
            time.sleep(self._lost_after + 3 * self._interval)
        with self._speaking:
            self._ended.set()
            if code is None:
                traceback.print_exception(error)
                code, line = LOST if of_others else 1, f"{type(error).__name__}: {line}"
            with contextlib.suppress(Exception):
                self._tell({"failed": line, "code": code})
            self._die(line, code)

    def _stop(self, line: str, code: int = LOST) -> None:
        """Ends the process for another one."""
        with self._speaking:
            self._die(line, code)

    def _die(self, line: str, code: int) -> None:
        self._say(line, "error: ")
        self._said()
        sys.stdout.flush()
        if self._index == 0:  # the signs are kept here: let the others read the last one
            time.sleep(3 * self._interval)
        os._exit(code)

    def _say(self, line: str, kind: str = "") -> None:
        os.write(2, f"miras: {kind}{self._me}: {line}\n".encode(errors="replace"))

    def _tell(self, status: dict, unless_ended: bool = False) -> None:
        with self._telling:  # no sign of life is written over the last word
            if not (unless_ended and self._ended.is_set()):
                key = f"{PREFIX}{self._index}"
                self._client.key_value_set(key, json.dumps(status), allow_overwrite=True)

    def _said(self) -> None:
        """No last word is needed."""
        if self._shell is not None:
            with contextlib.suppress(OSError):
                self._shell.communicate(b"said\n")
            self._shell = None


@contextlib.contextmanager
def end_together() -> Iterator[None]:
    """Ends the process at once for an error that the other processes do not know of.

    Clearing up first, as a context manager does on its way out, may wait for the others; so this is
    entered last. An error that all have agreed on passes, as all do in a single process.
    """
    try:
        yield
    except Exception as error:
        if _watch is None or getattr(error, "agreed", False):
            raise
        _watch.fail(error)
    except KeyboardInterrupt:
        if _watch is not None:
            _watch.fail(StoppedError("interrupted", signal.SIGINT))
        raise
