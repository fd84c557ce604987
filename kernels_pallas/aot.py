"""Prove that kernels compile for accelerators that are not there.

Compilation runs in child processes, because a compiler can crash on a bad kernel. A child takes
jobs in order, a crash is laid to the job that had begun, and a new child takes the rest:

    results = prove(["gla forward@v5e", ...], builder="cases.py:build", backend="tpu")

A job is `case@chip`. The builder is a function in a Python file, from the case to the function
that is compiled and its arguments' shapes; the child loads it, so that nothing has to be pickled.
By hand, one JSON line a job:

    python -m kernels_pallas.aot --backend tpu --builder cases.py:build "gla forward@v5e"
"""

import argparse
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from kernels_pallas.aot_gpu import compile_gpu, gpu_environment
from kernels_pallas.aot_tpu import compile_tpu, tpu_environment

ENVIRONMENT = {"tpu": tpu_environment, "gpu": gpu_environment}
COMPILE = {"tpu": compile_tpu, "gpu": compile_gpu}
PACKAGES = {"tpu": "libtpu", "gpu": "jax_plugins.xla_cuda13"}


class Result(NamedTuple):
    """What came of a job.

    Attributes:
      job: "case@chip".
      figures: as `compile_tpu` and `compile_gpu` return them; None if it did not compile.
      error: why not, "" if it did.
      seconds: that it took.
    """

    job: str
    figures: dict[str, Any] | None
    error: str
    seconds: float


def available(backend: str) -> str:
    """Why the compiler of "tpu" or "gpu" is not installed; "" if it is."""
    package = PACKAGES[backend]
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        found = None
    extra = {"tpu": "tpu", "gpu": "cuda"}[backend]
    return "" if found else f"{package} is not installed: pip install -e '.[{extra}]'"


def prove(
    jobs: Iterable[str], *, builder: str, backend: str, timeout: float = 600.0
) -> dict[str, Result]:
    """Compiles every job, in child processes.

    Args:
      jobs: "case@chip".
      builder: "file.py:function", a function from the case to `(function, shapes)`.
      backend: "tpu" or "gpu".
      timeout: seconds that one job may take.

    Returns:
      a result for every job, by job.
    """
    if reason := available(backend):
        raise ModuleNotFoundError(reason)
    waiting = list(dict.fromkeys(jobs))
    results: dict[str, Result] = {}
    while waiting:
        for result in _child(waiting, builder, backend, timeout):
            results[result.job] = result
        waiting = [job for job in waiting if job not in results]
    return results


def _child(jobs: list[str], builder: str, backend: str, timeout: float) -> Iterator[Result]:
    """Yields the results of one child; the last is a failure where it did not get to the end.

    Raises:
      RuntimeError: it ended before the first job began.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        dump = Path(folder, "dump")
        dump.mkdir()
        command = [sys.executable, "-m", "kernels_pallas.aot", "--backend", backend]
        command += ["--builder", builder, "--dump", str(dump), *jobs]
        path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        environment.pop("XLA_FLAGS", None)
        environment |= ENVIRONMENT[backend](dump)
        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
        reader.start()
        begun, since, complete = None, time.monotonic(), False
        try:
            for line in _lines(lines, timeout):
                said = json.loads(line)
                if "begin" in said:
                    begun, since = said["begin"], time.monotonic()
                elif "end" in said:
                    complete = True
                else:
                    begun = None
                    yield Result(**said)
            why = f"the compiler ended its process: {_ending(child.wait())}"
        except TimeoutError:
            why = f"no end after {timeout:.0f} s"
        finally:
            child.kill()
            child.wait()
            reader.join()
            child.stdout.close()
        if complete:
            return
        errors.seek(0)
        said = "\n".join(errors.read().splitlines()[-15:])
        if begun is None:
            raise RuntimeError(f"{' '.join(command[1:5])}: {why}\n{said}")
        yield Result(begun, None, f"{why}\n{said}".strip(), time.monotonic() - since)


def _read(stream: IO[str], lines: queue.Queue) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _lines(lines: queue.Queue, timeout: float) -> Iterator[str]:
    """The child's lines of JSON; TimeoutError where none comes for too long."""
    while True:
        try:
            line = lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            return
        if line.startswith("{"):
            yield line


def _ending(code: int) -> str:
    """An exit status in words."""
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def load(builder: str) -> Callable:
    """The function that "file.py:function" names."""
    file, _, name = builder.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def main() -> None:
    """The child: compiles the jobs of the command line in order, a line of JSON before and after
    each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=list(COMPILE), required=True)
    parser.add_argument("--builder", required=True, help="file.py:function")
    parser.add_argument("--dump", help="an empty folder that the environment names to the compiler")
    parser.add_argument("jobs", nargs="+", help="case@chip")
    args = parser.parse_args()
    if args.dump is None:
        for result in prove(args.jobs, builder=args.builder, backend=args.backend).values():
            print(json.dumps(result._asdict()))
        return

    def say(**what):
        print(json.dumps(what), flush=True)

    build = load(args.builder)
    for job in args.jobs:
        case, _, chip = job.rpartition("@")
        say(begin=job)
        since, figures, error = time.monotonic(), None, ""
        try:
            figures = COMPILE[args.backend](*build(case), chip, args.dump)
        except Exception as failure:  # whatever a compiler raises is the job's result
            where = "".join(traceback.format_tb(failure.__traceback__)[-4:])
            error = f"{type(failure).__name__}: {failure}\n{where}"
        say(job=job, figures=figures, error=error, seconds=time.monotonic() - since)
    say(end=True)


if __name__ == "__main__":
    main()
