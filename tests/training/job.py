"""A training run of several processes, as a launcher starts it: what its tests share."""

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time

from miras_jax.training import TrainConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENT = """
import dataclasses, pathlib
from miras_jax.training import MeshConfig
from tests.training.toy import toy
config = toy(pathlib.Path({folder!r}), mesh=MeshConfig(fsdp=2))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass
class Ended:
    """What a process left: its exit code, and all that it said."""

    code: int
    said: str


class Process:
    """One process of a job, with what it says in a file."""

    def __init__(self, log: pathlib.Path, arguments: list[str], environment: dict[str, str]):
        self.log = log
        with log.open("w") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "miras_jax", "train", *arguments],
                cwd=log.parent,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Waits until the process has said `words`."""
        deadline = time.monotonic() + seconds
        while words not in self.log.read_text():
            assert self.popen.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def end(self, seconds: float = 60) -> Ended:
        """Waits for its end."""
        try:
            code = self.popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise AssertionError(f"still running: {self.log.read_text()}") from None
        return Ended(code, self.log.read_text())


@contextlib.contextmanager
def job(folder: pathlib.Path, *options: str, own: dict[int, list[str]] | None = None, count=2):
    """Starts the toy run in `folder` with `count` processes of one device each, and kills what is
    left of them at the end.

    Args:
      folder: has the text and the run.
      options: of `miras train`, for all processes.
      own: further options by process.
      count: the processes.
    """
    experiment = folder / "experiment.py"
    experiment.write_text(EXPERIMENT.format(folder=str(folder)))
    port = free_port()
    started = []
    try:
        for i in range(count):
            environment = {
                "MIRAS_COORDINATOR": f"localhost:{port}",
                "MIRAS_PROCESS_COUNT": str(count),
                "MIRAS_PROCESS_INDEX": str(i),
            }
            flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
            environment["XLA_FLAGS"] = flags
            arguments = [str(experiment), *options, *(own or {}).get(i, [])]
            started.append(Process(folder / f"{i}.log", arguments, environment))
        yield started
    finally:
        for process in started:
            process.popen.kill()
            process.popen.wait()


def run(folder: pathlib.Path, *options: str, **more) -> list[Ended]:
    """Runs a job to its end."""
    with job(folder, *options, **more) as processes:
        return [process.end() for process in processes]


def alone(config: TrainConfig, **changes) -> TrainConfig:
    """The run of a job, as one process of these tests goes on with it."""
    return dataclasses.replace(config, **changes)
