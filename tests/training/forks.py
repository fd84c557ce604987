"""Runs of `miras` in processes of their own, which may be killed, without each importing JAX.

`python -m tests.training.forks` imports everything once and then forks a process for each request,
a line of JSON on stdin; it answers with the exit code, negative for a signal. JAX has no device yet
when it forks, so that each process is as if it were started afresh.
"""

import importlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
from typing import NamedTuple

TIMEOUT = 600  # seconds for a run, of which it takes a few
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str


class Forks:
    """The client: starts the server, ends it in `close`.

    Args:
      folder: for what the processes print and compile.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )

    def miras(
        self, *arguments: str, before: str | None = None, options: dict | None = None
    ) -> Ended:
        """Runs `miras` in a new process.

        Args:
          arguments: of the command.
          before: "MODULE:FUNCTION" to call first in the process, with `options`.
        """
        out, err = self._folder / "out", self._folder / "err"
        request = {
            "arguments": arguments,
            "before": before,
            "options": options or {},
            "out": str(out),
            "err": str(err),
        }
        print(json.dumps(request), file=self._server.stdin, flush=True)
        if not select.select([self._server.stdout], [], [], TIMEOUT)[0]:
            self._server.terminate()  # and with it the process that hangs
            raise TimeoutError(
                f"miras {arguments} runs for more than {TIMEOUT} s: {err.read_text()}"
            )
        code = int(self._server.stdout.readline())
        return Ended(code, out.read_text(), err.read_text())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()


def serve() -> None:
    """Forks a process for every request; returns in each of them, and at the end."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            run(**request)
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))  # noqa: B023
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(arguments: list[str], before: str | None, options: dict, out: str, err: str) -> None:
    """Becomes the process of one request."""
    for name, number in ((os.devnull, 0), (out, 1), (err, 2)):
        file = os.open(name, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0))
        os.dup2(file, number)
    if before:
        module, _, function = before.partition(":")
        getattr(importlib.import_module(module), function)(**options)
    sys.exit(cli.main(arguments))  # as the command does, with all that ends a process


if __name__ == "__main__":
    import tyro  # noqa: F401

    from miras_jax import cli, export, training  # noqa: F401

    serve()
